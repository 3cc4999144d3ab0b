"""Nouns that needles are about, those of training and those held out; numbers are divided in the same way."""

from functools import cache

from fourfold.data.documents import unit

HELD_OUT_SHARE = 0.2
NOUNS = """
    river bank hill moon valley pond planet rock coast mountain island beach trail ocean creek ridge cave lake cliff gulf volcano
    comet delta reef isle marsh waterway cove peninsula dune plateau riverbed dale canal glen chasm crater lagoon city town
    district suburb lawn port province meadow empire desert landmark playground battlefield pasture hemisphere farmland coastline
    refuge skyline glade surface room wall road office street window engine shelter ship farm hotel camp bullet flag roof fence
    apartment store weapon bottle coat shoe painting train pocket hospital wagon desk holder station blanket barn bedroom pool
    porch truck tool garden telephone shell laboratory gate bench entrance factory mine photograph tent wheel watch jacket uniform
    studio clock automobile vehicle aircraft boat missile button saddle boot lamp horn railroad pole tray highway vase garage
    ceiling screen bell knife dish cannon roadway suitcase belt receiver bridge doorway thermometer shutter pipe theater tank
    piano shop musket sword parlor trap cellar soap deck barrier shelf brick chamber tire cabin costume curtain fork temple basket
    skiff cartridge library monument cartoon sensor tomb closet towel stove glove bandage cage drum motor skirt bathroom cart
    computer lobby generator compartment couch shield statue palace slipper filter drawer headlight container curb emblem fireplace
    ladder cafe boxcar tower tree flower leaf root seed fruit bush willow vine trunk pine stump bulb needle rose shrub maple herb
    violet banana beech clover daisy seedling orchid wheat vanilla basil mango lily redwood parsley peach hazel nettle pineapple
    carrot peanut horse bird cattle queen snake fish sheep mouse giant monkey calf kitten goat lamb bull worm toad duck pony moth
    crow goose turkey rooster snail mule hound beak chick louse lion locust dove frog terrier salmon shark cricket spider flea
    wolf beetle crab cocoon goldfish panda mammoth hamster butterfly rodent hyena moose cougar camel stork starling tomcat coffee
    dinner drink chicken milk whisky avocado supper honey breakfast wine orange radish sandwich lemon sugar meat pork dough coconut
    bacon pear loaf bread butter berry soup blackberry dessert potato jelly juice melon tomato cheese steak barley grape apple
    sausage cookie eggplant vinegar cabbage salad chocolate cracker gravy candy sauce waffle pickle strawberry pastry pancake
    syrup muffin yogurt omelet pasta chili harbor lantern mill anchor compass castle cottage market museum orchard stable vessel
    carriage chapel fountain furnace hammer helmet kettle mirror necklace oven pencil pillow quilt rocket scissors spoon staircase
    stadium suitcase sunflower telescope ticket tunnel umbrella valve violin wallet warehouse whistle windmill zebra falcon dolphin
"""


@cache
def nouns(split: str) -> tuple[str, ...]:
    """The nouns of `train` or `held_out`; none is in both."""
    return tuple(noun for noun in dict.fromkeys(NOUNS.split()) if in_split(noun, split))


def in_split(value: str, split: str) -> bool:
    """Whether a noun or a number belongs to the split."""
    return (unit("needle:" + value) < HELD_OUT_SHARE) == (split == "held_out")
