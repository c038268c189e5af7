// Instance norm, ReLU and 2x2 average pooling in one pass, with first and second derivatives; and
// 3x3 convolutions of few input channels, which are those of images.
//
// Formulas and symbols are those of robustdd_bench/toolkit/fast/blocks.py. A plane is one
// channel of one image: n = H W numbers that fit the first cache, so that each tensor is read from
// memory once and written once. Planes are independent, so the result does not depend on the
// number of threads. Sums over the batch are left to the caller.
//
// Sums go over sixteen lanes in a fixed order, and products are not contracted with sums, so that
// the vector width of a processor changes no bit.
//
// Nothing of torch is included: the file compiles in a few seconds, for any version of it.

#include <cmath>
#include <cstdint>
#include <type_traits>
#include <vector>

namespace {

struct Sizes {
    int64_t planes, channels, height, width;
    int threads;
};

// Square planes of the usual sides are known when this is compiled, so that loops over them are
// unrolled. SIDE is 0 for all others.
template <int SIDE> struct Shape : Sizes {
    Shape(const Sizes& sizes) : Sizes(sizes) {}
    int64_t rows() const { return SIDE ? SIDE : height; }
    int64_t columns() const { return SIDE ? SIDE : width; }
    int64_t size() const { return rows() * columns(); }
    int64_t pooled() const { return (rows() / 2) * (columns() / 2); }
};

// z g + b, and whether ReLU lets it pass. NaN passes, as in torch.
template <class T> inline T affine(T centred, T factor, T bias) { return centred * factor + bias; }
template <class T> inline T gate(T value, T sign, bool relu) {
    return relu && sign <= T(0) ? T(0) : value;
}

// A sum in sixteen lanes: element i goes to lane i % 16, and lanes are added pairwise at the end.
constexpr int LANES = 16;
template <class T> struct Sum {
    T lane[LANES] = {};
    T total() {
        for (int half = LANES / 2; half; half /= 2)
            for (int j = 0; j < half; ++j) lane[j] += lane[j + half];
        return lane[0];
    }
};

// Calls `work(i, lane)` for all i below n, lane by lane.
template <class Work> inline void lanes(const int64_t n, const Work work) {
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; ++j) work(i + j, j);
    for (int j = 0; i + j < n; ++j) work(i + j, j);
}

template <class T, int SIDE> void pool(const T* from, T* to, const Shape<SIDE>& s) {
    const int64_t rows = s.rows() / 2, columns = s.columns() / 2;
    for (int64_t i = 0; i < rows; ++i) {
        const T *upper = from + 2 * i * s.columns(), *lower = upper + s.columns();
        T* out = to + i * columns;
        for (int64_t j = 0; j < columns; ++j) {
            const T left = upper[2 * j] + lower[2 * j], right = upper[2 * j + 1] + lower[2 * j + 1];
            out[j] = (left + right) * T(0.25);
        }
    }
}

// The transpose of `pool`. What a last odd row or column holds is not pooled.
template <class T, int SIDE> void spread(const T* from, T* to, const Shape<SIDE>& s) {
    const int64_t rows = s.rows() / 2, columns = s.columns() / 2, width = s.columns();
    for (int64_t i = 0; i < rows; ++i) {
        const T* in = from + i * columns;
        T *upper = to + 2 * i * width, *lower = upper + width;
        for (int64_t j = 0; j < columns; ++j) {
            const T value = in[j] * T(0.25);
            upper[2 * j] = value;
            upper[2 * j + 1] = value;
        }
        if (width & 1) upper[width - 1] = T(0);
        for (int64_t j = 0; j < width; ++j) lower[j] = upper[j];
    }
    if (s.rows() & 1)
        for (int64_t j = 0; j < width; ++j) to[(s.rows() - 1) * width + j] = T(0);
}

template <class T, int SIDE, class Flag>
void forward(const T* x_all, const T* weight, const T* bias, T* y_all, T* means, T* scales,
             const Shape<SIDE> s, const Flag relu, const Flag pooled, const double epsilon) {
    const int64_t n = s.size(), n_out = pooled ? s.pooled() : n;
#pragma omp parallel num_threads(s.threads) if (s.threads > 1)
    {
        std::vector<T> scratch(n);
#pragma omp for
        for (int64_t k = 0; k < s.planes; ++k) {
            const T* x = x_all + k * n;
            T* y = y_all + k * n_out;
            Sum<T> sum, squares;
            lanes(n, [&](int64_t i, int j) { sum.lane[j] += x[i]; });
            const T mean = sum.total() / n;
            lanes(n, [&](int64_t i, int j) {
                const T centred = x[i] - mean;
                squares.lane[j] += centred * centred;
            });
            const T scale = 1 / std::sqrt(squares.total() / n + static_cast<T>(epsilon));
            means[k] = mean;
            scales[k] = scale;
            const T factor = scale * weight[k % s.channels], shift = bias[k % s.channels];
            T* out = pooled ? scratch.data() : y;
            for (int64_t i = 0; i < n; ++i) {
                const T value = affine(x[i] - mean, factor, shift);
                out[i] = gate(value, value, relu);
            }
            if (pooled) pool(out, y, s);
        }
    }
}

template <class T, int SIDE, class Flag>
void backward(const T* e_all, const T* x_all, const T* weight, const T* bias, const T* means,
              const T* scales, T* dx_all, T* d_weight, T* d_bias, const Shape<SIDE> s,
              const Flag relu, const Flag pooled) {
    const int64_t n = s.size(), n_out = pooled ? s.pooled() : n;
#pragma omp parallel num_threads(s.threads) if (s.threads > 1)
    {
        std::vector<T> scratch(n);
        T* d = scratch.data();
#pragma omp for
        for (int64_t k = 0; k < s.planes; ++k) {
            const T *x = x_all + k * n, *e = e_all + k * n_out;
            T* dx = dx_all + k * n;
            const T mean = means[k], scale = scales[k];
            const T factor = scale * weight[k % s.channels], shift = bias[k % s.channels];
            if (pooled) spread(e, d, s);
            const T* in = pooled ? d : e;
            Sum<T> d_lanes, dz_lanes;
            lanes(n, [&](int64_t i, int j) {
                const T centred = x[i] - mean;
                const T value = gate(in[i], affine(centred, factor, shift), relu);
                d[i] = value;
                d_lanes.lane[j] += value;
                dz_lanes.lane[j] += value * centred;
            });
            const T d_sum = d_lanes.total(), dz_sum = dz_lanes.total() * scale;
            d_bias[k] = d_sum;
            d_weight[k] = dz_sum;
            const T d_mean = d_sum / n, slope = scale * (dz_sum / n);
            for (int64_t i = 0; i < n; ++i)
                dx[i] = factor * (d[i] - d_mean - (x[i] - mean) * slope);
        }
    }
}

template <class T, int SIDE, class Flag>
void second(const T* u_all, const T* p_all, const T* q_all, const T* e_all, const T* x_all,
            const T* weight, const T* bias, const T* means, const T* scales, T* to_e_all,
            T* to_x_all, T* to_weight, const Shape<SIDE> s, const Flag relu, const Flag pooled) {
    const int64_t n = s.size(), n_out = pooled ? s.pooled() : n;
#pragma omp parallel num_threads(s.threads) if (s.threads > 1)
    {
        std::vector<T> scratch(2 * n);
        T *d = scratch.data(), *moved = d + n;
#pragma omp for
        for (int64_t k = 0; k < s.planes; ++k) {
            const T *x = x_all + k * n, *e = e_all + k * n_out, *u = u_all + k * n;
            T *to_x = to_x_all + k * n, *to_e = to_e_all + k * n_out;
            const int64_t c = k % s.channels;
            const T mean = means[k], scale = scales[k], p = p_all[c], q = q_all[c];
            const T factor = scale * weight[c], shift = bias[c];
            if (pooled) spread(e, d, s);
            const T* in = pooled ? d : e;
            Sum<T> u_sum, uz_sum, d_sum, dz_sum, ud_sum;
            lanes(n, [&](int64_t i, int j) {
                const T centred = x[i] - mean;
                const T value = gate(in[i], affine(centred, factor, shift), relu);
                d[i] = value;
                d_sum.lane[j] += value;
                dz_sum.lane[j] += value * centred;
                u_sum.lane[j] += u[i];
                uz_sum.lane[j] += u[i] * centred;
                ud_sum.lane[j] += u[i] * value;
            });
            const T u_mean = u_sum.total() / n, d_mean = d_sum.total() / n;
            const T a = scale * uz_sum.total() / n, b = scale * dz_sum.total() / n;
            const T common = ud_sum.total() / n - u_mean * d_mean - a * b;
            to_weight[k] = n * scale * common;
            const T of_z = p - factor * a;
            T* out = pooled ? moved : to_e;
            const T slope = of_z * scale, level = q - factor * u_mean;
            for (int64_t i = 0; i < n; ++i) {
                const T centred = x[i] - mean;
                const T value = factor * u[i] + slope * centred + level;
                out[i] = gate(value, affine(centred, factor, shift), relu);
            }
            if (pooled) pool(out, to_e, s);
            const T of_d = of_z, of_u = -factor * b;
            const T v_mean = of_d * d_mean + of_u * u_mean, vz_mean = of_d * b + of_u * a;
            const T along_z = -scale * scale * (vz_mean + factor * common);
            for (int64_t i = 0; i < n; ++i)
                to_x[i] = scale * (of_d * d[i] + of_u * u[i] - v_mean) + along_z * (x[i] - mean);
        }
    }
}

// A plane of SIDE x SIDE with a border of zeros.
template <class T, int SIDE> void bordered(const T* plane, T* to) {
    constexpr int wide = SIDE + 2;
    for (int j = 0; j < wide; ++j) to[j] = to[(SIDE + 1) * wide + j] = T(0);
    for (int i = 0; i < SIDE; ++i) {
        T* row = to + (i + 1) * wide;
        row[0] = row[SIDE + 1] = T(0);
        for (int j = 0; j < SIDE; ++j) row[j + 1] = plane[i * SIDE + j];
    }
}

// Adds the correlation of a bordered plane with a 3x3 kernel.
template <class T, int SIDE> void correlate(const T* plane, const T* kernel, T* to) {
    constexpr int wide = SIDE + 2;
    const T a = kernel[0], b = kernel[1], c = kernel[2], d = kernel[3], e = kernel[4],
            f = kernel[5], g = kernel[6], h = kernel[7], k = kernel[8];
    for (int i = 0; i < SIDE; ++i) {
        const T *u = plane + i * wide, *v = u + wide, *w = v + wide;
        T* out = to + i * SIDE;
        for (int j = 0; j < SIDE; ++j)
            out[j] += a * u[j] + b * u[j + 1] + c * u[j + 2] + d * v[j] + e * v[j + 1] +
                      f * v[j + 2] + g * w[j] + h * w[j + 1] + k * w[j + 2];
    }
}

struct Layer {
    int64_t images, inputs, outputs;
    int threads;
};

// y = w * x + b for 3x3 kernels with a border of one.
template <class T, int SIDE>
void convolve(const T* x_all, const T* weight, const T* bias, T* y_all, const Layer s) {
    constexpr int n = SIDE * SIDE, padded = (SIDE + 2) * (SIDE + 2);
#pragma omp parallel num_threads(s.threads) if (s.threads > 1)
    {
        std::vector<T> planes(s.inputs * padded);
#pragma omp for
        for (int64_t i = 0; i < s.images; ++i) {
            for (int64_t c = 0; c < s.inputs; ++c)
                bordered<T, SIDE>(x_all + (i * s.inputs + c) * n, planes.data() + c * padded);
            for (int64_t o = 0; o < s.outputs; ++o) {
                T* y = y_all + (i * s.outputs + o) * n;
                for (int j = 0; j < n; ++j) y[j] = bias ? bias[o] : T(0);
                for (int64_t c = 0; c < s.inputs; ++c)
                    correlate<T, SIDE>(planes.data() + c * padded,
                                       weight + (o * s.inputs + c) * 9, y);
            }
        }
    }
}

// The cotangent of x from that of y.
template <class T, int SIDE>
void convolve_back(const T* d_all, const T* weight, T* dx_all, const Layer s) {
    constexpr int n = SIDE * SIDE;
#pragma omp parallel num_threads(s.threads) if (s.threads > 1)
    {
        std::vector<T> plane((SIDE + 2) * (SIDE + 2));
#pragma omp for
        for (int64_t i = 0; i < s.images; ++i) {
            T* dx = dx_all + i * s.inputs * n;
            for (int64_t j = 0; j < s.inputs * n; ++j) dx[j] = T(0);
            for (int64_t o = 0; o < s.outputs; ++o) {
                bordered<T, SIDE>(d_all + (i * s.outputs + o) * n, plane.data());
                for (int64_t c = 0; c < s.inputs; ++c) {
                    T turned[9];
                    for (int j = 0; j < 9; ++j) turned[j] = weight[(o * s.inputs + c) * 9 + 8 - j];
                    correlate<T, SIDE>(plane.data(), turned, dx + c * n);
                }
            }
        }
    }
}

// Calls `work(shape, relu, pooled)`, with constants where they are the usual ones.
template <class T, class Work>
void dispatch(const Sizes& sizes, const bool relu, const bool pooled, const Work work) {
    const std::true_type yes;
    if constexpr (std::is_same_v<T, float>) {
        if (relu && pooled && sizes.height == sizes.width) {
            if (sizes.height == 4) return work(Shape<4>(sizes), yes, yes);
            if (sizes.height == 8) return work(Shape<8>(sizes), yes, yes);
            if (sizes.height == 16) return work(Shape<16>(sizes), yes, yes);
            if (sizes.height == 32) return work(Shape<32>(sizes), yes, yes);
        }
    }
    work(Shape<0>(sizes), relu, pooled);
}

// Calls `work(side)` with a constant.
template <class Work> void by_side(const int64_t side, const Work work) {
    if (side == 8) return work(std::integral_constant<int, 8>());
    if (side == 16) return work(std::integral_constant<int, 16>());
    if (side == 32) return work(std::integral_constant<int, 32>());
}

}  // namespace

#define ENTRIES(T, name)                                                                          \
    extern "C" void forward_##name(const T* x, const T* weight, const T* bias, T* y, T* means,   \
                                   T* scales, int64_t planes, int64_t channels, int64_t height,  \
                                   int64_t width, double epsilon, int relu, int pooled,          \
                                   int threads) {                                                \
        const Sizes sizes{planes, channels, height, width, threads};                             \
        dispatch<T>(sizes, relu, pooled, [&](auto shape, auto relu, auto pooled) {               \
            forward<T>(x, weight, bias, y, means, scales, shape, relu, pooled, epsilon);         \
        });                                                                                       \
    }                                                                                             \
    extern "C" void backward_##name(const T* e, const T* x, const T* weight, const T* bias,      \
                                    const T* means, const T* scales, T* dx, T* d_weight,         \
                                    T* d_bias, int64_t planes, int64_t channels, int64_t height, \
                                    int64_t width, int relu, int pooled, int threads) {          \
        const Sizes sizes{planes, channels, height, width, threads};                             \
        dispatch<T>(sizes, relu, pooled, [&](auto shape, auto relu, auto pooled) {               \
            backward<T>(e, x, weight, bias, means, scales, dx, d_weight, d_bias, shape, relu,    \
                        pooled);                                                                  \
        });                                                                                       \
    }                                                                                             \
    extern "C" void second_##name(const T* u, const T* p, const T* q, const T* e, const T* x,    \
                                  const T* weight, const T* bias, const T* means,                \
                                  const T* scales, T* to_e, T* to_x, T* to_weight,               \
                                  int64_t planes, int64_t channels, int64_t height,              \
                                  int64_t width, int relu, int pooled, int threads) {            \
        const Sizes sizes{planes, channels, height, width, threads};                             \
        dispatch<T>(sizes, relu, pooled, [&](auto shape, auto relu, auto pooled) {               \
            second<T>(u, p, q, e, x, weight, bias, means, scales, to_e, to_x, to_weight, shape,  \
                      relu, pooled);                                                              \
        });                                                                                       \
    }
#define CONVOLUTIONS(T, name)                                                                     \
    extern "C" void convolve_##name(const T* x, const T* weight, const T* bias, T* y,            \
                                    int64_t images, int64_t inputs, int64_t outputs,             \
                                    int64_t side, int threads) {                                 \
        by_side(side, [&](auto size) {                                                           \
            convolve<T, decltype(size)::value>(x, weight, bias, y,                               \
                                               {images, inputs, outputs, threads});              \
        });                                                                                       \
    }                                                                                             \
    extern "C" void convolve_back_##name(const T* d, const T* weight, T* dx, int64_t images,     \
                                         int64_t inputs, int64_t outputs, int64_t side,          \
                                         int threads) {                                          \
        by_side(side, [&](auto size) {                                                           \
            convolve_back<T, decltype(size)::value>(d, weight, dx,                               \
                                                    {images, inputs, outputs, threads});         \
        });                                                                                       \
    }

CONVOLUTIONS(float, float32)
CONVOLUTIONS(double, float64)
ENTRIES(float, float32)
ENTRIES(double, float64)
