"""The classes of Tiny ImageNet and of the six ImageNet subsets, in the order of their labels.

A class is named by its WordNet id, as the folders of the files are.
"""

from __future__ import annotations

from dataclasses import dataclass

_TINY = """
n01443537 n01629819 n01641577 n01644900 n01698640 n01742172 n01768244 n01770393 n01774384
n01774750 n01784675 n01855672 n01882714 n01910747 n01917289 n01944390 n01945685 n01950731
n01983481 n01984695 n02002724 n02056570 n02058221 n02074367 n02085620 n02094433 n02099601
n02099712 n02106662 n02113799 n02123045 n02123394 n02124075 n02125311 n02129165 n02132136
n02165456 n02190166 n02206856 n02226429 n02231487 n02233338 n02236044 n02268443 n02279972
n02281406 n02321529 n02364673 n02395406 n02403003 n02410509 n02415577 n02423022 n02437312
n02480495 n02481823 n02486410 n02504458 n02509815 n02666196 n02669723 n02699494 n02730930
n02769748 n02788148 n02791270 n02793495 n02795169 n02802426 n02808440 n02814533 n02814860
n02815834 n02823428 n02837789 n02841315 n02843684 n02883205 n02892201 n02906734 n02909870
n02917067 n02927161 n02948072 n02950826 n02963159 n02977058 n02988304 n02999410 n03014705
n03026506 n03042490 n03085013 n03089624 n03100240 n03126707 n03160309 n03179701 n03201208
n03250847 n03255030 n03355925 n03388043 n03393912 n03400231 n03404251 n03424325 n03444034
n03447447 n03544143 n03584254 n03599486 n03617480 n03637318 n03649909 n03662601 n03670208
n03706229 n03733131 n03763968 n03770439 n03796401 n03804744 n03814639 n03837869 n03838899
n03854065 n03891332 n03902125 n03930313 n03937543 n03970156 n03976657 n03977966 n03980874
n03983396 n03992509 n04008634 n04023962 n04067472 n04070727 n04074963 n04099969 n04118538
n04133789 n04146614 n04149813 n04179913 n04251144 n04254777 n04259630 n04265275 n04275548
n04285008 n04311004 n04328186 n04356056 n04366367 n04371430 n04376876 n04398044 n04399382
n04417672 n04456115 n04465501 n04486054 n04487081 n04501370 n04507155 n04532106 n04532670
n04540053 n04560804 n04562935 n04596742 n04597913 n06596364 n07579787 n07583066 n07614500
n07615774 n07695742 n07711569 n07715103 n07720875 n07734744 n07747607 n07749582 n07753592
n07768694 n07871810 n07873807 n07875152 n07920052 n09193705 n09246464 n09256479 n09332890
n09428293 n12267677
"""
TINY = tuple(_TINY.split())
"""The 200 classes of Tiny ImageNet, sorted: a label is a place in this list, as in the codes that
read it by torchvision's ImageFolder. Its own wnids.txt has them in another order."""

_ILSVRC = {
    0: ("n01440764", "tench"),
    9: ("n01518878", "ostrich"),
    11: ("n01531178", "goldfinch"),
    22: ("n01614925", "bald eagle"),
    72: ("n01773157", "garden spider"),
    84: ("n01806143", "peacock"),
    88: ("n01818515", "macaw"),
    89: ("n01819313", "cockatoo"),
    96: ("n01843383", "toucan"),
    100: ("n01860187", "black swan"),
    130: ("n02007558", "flamingo"),
    144: ("n02051845", "pelican"),
    145: ("n02056570", "king penguin"),
    155: ("n02086240", "Shih-Tzu"),
    159: ("n02087394", "Rhodesian ridgeback"),
    162: ("n02088364", "beagle"),
    167: ("n02089973", "English foxhound"),
    182: ("n02093754", "Border terrier"),
    193: ("n02096294", "Australian terrier"),
    207: ("n02099601", "golden retriever"),
    217: ("n02102040", "English springer"),
    229: ("n02105641", "Old English sheepdog"),
    258: ("n02111889", "Samoyed"),
    273: ("n02115641", "dingo"),
    281: ("n02123045", "tabby cat"),
    282: ("n02123159", "tiger cat"),
    283: ("n02123394", "Persian cat"),
    284: ("n02123597", "Siamese cat"),
    285: ("n02124075", "Egyptian cat"),
    287: ("n02127052", "lynx"),
    289: ("n02128757", "snow leopard"),
    290: ("n02128925", "jaguar"),
    291: ("n02129165", "lion"),
    292: ("n02129604", "tiger"),
    309: ("n02206856", "bee"),
    482: ("n02979186", "cassette player"),
    491: ("n03000684", "chain saw"),
    497: ("n03028079", "church"),
    566: ("n03394916", "French horn"),
    569: ("n03417042", "garbage truck"),
    571: ("n03425413", "gas pump"),
    574: ("n03445777", "golf ball"),
    599: ("n03530642", "honeycomb"),
    701: ("n03888257", "parachute"),
    779: ("n04146614", "school bus"),
    943: ("n07718472", "cucumber"),
    945: ("n07720875", "bell pepper"),
    948: ("n07742313", "Granny Smith"),
    949: ("n07745940", "strawberry"),
    950: ("n07747607", "orange"),
    951: ("n07749582", "lemon"),
    952: ("n07753113", "fig"),
    953: ("n07753275", "pineapple"),
    954: ("n07753592", "banana"),
    957: ("n07768694", "pomegranate"),
    986: ("n12057211", "lady's slipper"),
    987: ("n12144580", "corn"),
}
"""Of the classes of ILSVRC 2012 that are in a subset: number, WordNet id, name. Numbers count the
1,000 WordNet ids in sorted order from 0."""


@dataclass(frozen=True, slots=True)
class Subset:
    """Ten classes of ImageNet."""

    title: str
    """As papers write it."""
    numbers: tuple[int, ...]
    """Of the classes in ILSVRC 2012, by label."""

    @property
    def wnids(self) -> tuple[str, ...]:
        """WordNet ids of the classes, by label."""
        return tuple(_ILSVRC[number][0] for number in self.numbers)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the classes, by label."""
        return tuple(_ILSVRC[number][1] for number in self.numbers)


SUBSETS = {
    "imagenette": Subset("ImageNette", (0, 217, 482, 491, 497, 566, 569, 571, 574, 701)),
    "imagewoof": Subset("ImageWoof", (193, 182, 258, 162, 155, 167, 159, 273, 207, 229)),
    "imagemeow": Subset("ImageMeow", (281, 282, 283, 284, 285, 291, 292, 290, 289, 287)),
    "imagesquawk": Subset("ImageSquawk", (84, 130, 88, 144, 145, 22, 96, 9, 100, 89)),
    "imagefruit": Subset("ImageFruit", (953, 954, 949, 950, 951, 957, 952, 945, 943, 948)),
    "imageyellow": Subset("ImageYellow", (309, 986, 954, 951, 987, 779, 599, 291, 72, 11)),
}
"""The subsets of trajectory matching (Cazenavette et al. 2022), in the order of its code."""
SUBSET_GROUP = "imagenet-subsets"
"""What presets call all of them."""


def dataset_group(dataset: str) -> str | None:
    """The name that presets have for a data set and others like it; None: it stands alone."""
    return SUBSET_GROUP if dataset in SUBSETS else None
