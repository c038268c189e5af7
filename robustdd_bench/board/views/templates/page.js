"use strict";
(() => {
  const all = (selector, from = document) => Array.from(from.querySelectorAll(selector));

  // Sorting: a button in each heading; a third press gives the board's own order back.
  for (const table of all("table.board:not(.plain)")) {
    const heads = all("thead th", table);
    const bodies = all("tbody", table).map((body) => ({ body, rows: all("tr", body) }));
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      head.setAttribute("aria-sort", "none");
      const falling = head.dataset.type === "number" && column > 0;
      button.addEventListener("click", () => {
        const was = head.getAttribute("aria-sort");
        const first = falling ? "descending" : "ascending";
        const second = falling ? "ascending" : "descending";
        const now = was === "none" ? first : was === first ? second : "none";
        heads.forEach((other) => other.setAttribute("aria-sort", "none"));
        head.setAttribute("aria-sort", now);
        for (const { body, rows } of bodies) {
          const order = rows.slice();
          if (now !== "none") {
            const sign = now === "ascending" ? 1 : -1;
            const value = (row) => row.children[column].dataset.value;
            order.sort((a, b) =>
              sign *
              (head.dataset.type === "number"
                ? Number(value(a)) - Number(value(b))
                : value(a).localeCompare(value(b), "en")),
            );
          }
          body.append(...order);
        }
      });
    });
  }

  // Filters live in the address, so that a view can be handed on: #dataset=digits&ipc=10
  const form = document.querySelector("form.filters");
  const tracks = all("section.track");
  const filter = (values) => {
    let shown = 0;
    for (const track of tracks) {
      const fits = Object.entries(values).every(
        ([name, value]) => !value || name === "division" || track.dataset[name] === value,
      );
      let divisions = 0;
      for (const division of all(".division", track)) {
        division.hidden = Boolean(values.division) && division.dataset.division !== values.division;
        divisions += division.hidden ? 0 : 1;
      }
      track.hidden = !fits || divisions === 0;
      shown += track.hidden ? 0 : 1;
      for (const row of all("table.overview tr[data-track]")) {
        if (row.dataset.track === track.id) row.hidden = track.hidden;
      }
    }
    const none = document.querySelector(".none");
    none.hidden = shown > 0 || tracks.length === 0;
    if (form) form.querySelector(".count").textContent = `${shown} of ${tracks.length} tracks`;
  };
  const chosen = () => Object.fromEntries(new FormData(form));
  if (form) {
    form.hidden = false;
    const follow = () => {
      const values = chosen();
      filter(values);
      const wanted = Object.entries(values).filter(([, value]) => value);
      history.replaceState(null, "", `#${new URLSearchParams(wanted)}`);
    };
    form.addEventListener("change", follow);
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("reset", () => setTimeout(follow));
  }

  // Deep links: a track, a row (its details open), or filters.
  const go = () => {
    let name = location.hash.slice(1);
    try {
      name = decodeURIComponent(name);
    } catch {
      return;
    }
    if (name.includes("=") && form) {
      const wanted = new URLSearchParams(name);
      for (const select of all("select", form)) {
        const value = wanted.get(select.name) ?? "";
        select.value = all("option", select).some((o) => o.value === value) ? value : "";
      }
      filter(chosen());
      return;
    }
    all(".card.here").forEach((card) => card.classList.remove("here"));
    const target = name && document.getElementById(name);
    if (!target) return;
    const track = target.closest("section.track");
    if (form && (track?.hidden || target.closest(".division")?.hidden)) {
      form.reset();
      filter({});
    }
    if (target.matches("details.card")) {
      target.open = true;
      target.classList.add("here");
      target.scrollIntoView({ block: "start" });
      target.querySelector("summary").focus({ preventScroll: true });
    }
  };
  addEventListener("hashchange", go);
  for (const link of all('a[href^="#"]')) {
    link.addEventListener("click", () => {
      if (link.getAttribute("href") === location.hash) go();
    });
  }
  if (form) filter(chosen());
  go();

  // Commands can be copied.
  for (const box of navigator.clipboard ? all(".command") : []) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "Copy";
    const command = box.querySelector("code").textContent;
    button.setAttribute("aria-label", `Copy: ${command}`);
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(command);
        button.textContent = "Copied";
      } catch {
        button.textContent = "Not allowed";
      }
      setTimeout(() => (button.textContent = "Copy"), 1500);
    });
    box.append(button);
  }

  // Pointing at a row shows it in the plots, and the other way round.
  for (const track of tracks) {
    const marks = all("[data-row]", track);
    const show = (name) => {
      for (const mark of marks) mark.classList.toggle("hot", mark.dataset.row === name);
      for (const plot of all(".plot", track)) plot.classList.toggle("picked", Boolean(name));
    };
    for (const mark of marks) {
      mark.addEventListener("pointerenter", () => show(mark.dataset.row));
      mark.addEventListener("pointerleave", () => show(""));
      mark.addEventListener("focusin", () => show(mark.dataset.row));
      mark.addEventListener("focusout", () => show(""));
    }
  }
})();
