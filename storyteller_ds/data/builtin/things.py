"""What the stories are about: the objects, skills, plants and treats that a hero wishes for or cares for.

Every thing is a singular noun (or, for a skill, a verb in its base form), so that "it" and "the" fit.
"""

from collections.abc import Mapping
from typing import NamedTuple


class Thing(NamedTuple):
    """A wish-object and the words that fit only this one, by the placeholder that they fill."""

    word: str
    details: Mapping[str, str] = {}


TOYS = tuple(
    Thing(word)
    for word in (
        *("ball", "kite", "drum", "doll", "teddy bear", "toy boat", "toy train", "toy car", "toy horse"),
        *("spinning top", "yo-yo", "puppet", "jump rope", "toy plane", "toy truck", "wagon", "hoop"),
        *("toy robot", "scooter", "pinwheel", "bucket", "trumpet", "balloon", "toy dragon", "sled"),
    )
)

KEEPSAKES = tuple(
    Thing(word)
    for word in (
        *("hat", "scarf", "mitten", "cap", "ring", "bell", "whistle", "marble", "key", "button", "ribbon"),
        *("necklace", "bracelet", "badge", "coin", "sea shell", "feather", "backpack", "flute", "compass"),
        *("ball", "teddy bear", "toy boat", "toy car", "doll", "yo-yo", "puppet", "toy rabbit", "medal"),
    )
)

TREASURES_OF_THE_HOUSE = tuple(
    Thing(word)
    for word in (
        *("vase", "cup", "plate", "bowl", "jar", "teapot", "mirror", "clock", "lamp", "mug", "glass bird"),
        *("flower pot", "picture frame", "music box", "snow globe", "sugar bowl", "glass star", "pitcher"),
    )
)

NIGHT_FRIENDS = tuple(
    Thing(word)
    for word in (
        *("lantern", "lamp", "blanket", "teddy bear", "flashlight", "night light", "pillow", "toy owl"),
        *("glass star", "music box", "toy rabbit", "quilt", "rag doll", "toy lion", "paper moon"),
    )
)

PRIZES = tuple(
    Thing(word)
    for word in (
        *("cup", "ribbon", "medal", "crown", "trophy", "flag", "kite", "scooter", "drum", "hat", "bell"),
        *("ball", "wagon", "cape", "toy train", "trumpet", "star", "balloon", "sled", "toy boat"),
    )
)

SHOP_THINGS = tuple(
    Thing(word)
    for word in (
        *("kite", "drum", "toy boat", "scarf", "guitar", "paint box", "lantern", "hat", "toy train"),
        *("bicycle", "music box", "telescope", "globe", "sled", "umbrella", "watch", "trumpet", "doll"),
        *("teddy bear", "puzzle", "toy castle", "wagon", "raincoat", "storybook", "tent"),
    )
)

LOADS = tuple(
    Thing(word)
    for word in (
        *("basket", "sack", "bag", "box", "trunk", "suitcase", "chair", "pumpkin", "bucket", "crate"),
        *("ladder", "table", "barrel", "log", "melon", "rug", "pot", "cart", "bench", "mailbag"),
    )
)

PLANTS = tuple(
    Thing(word)
    for word in (
        *("sunflower", "pumpkin", "carrot", "tomato", "melon", "daisy", "poppy", "cucumber", "radish"),
        *("marigold", "pepper", "turnip", "squash", "cabbage", "beet", "zinnia", "tulip", "watermelon"),
    )
)

TREATS = tuple(
    Thing(word, {"needs": needs})
    for word, needs in (
        *(("cake", "flour"), ("pie", "butter"), ("loaf", "flour"), ("tart", "sugar"), ("muffin", "milk")),
        *(("pudding", "milk"), ("pancake", "butter"), ("cookie", "sugar"), ("cupcake", "butter")),
        *(
            ("bun", "flour"),
            ("waffle", "milk"),
            ("biscuit", "flour"),
            ("roll", "sugar"),
            ("jam tart", "flour"),
        ),
    )
)

BREAKABLE = tuple(
    Thing(word, {"damage": damage, "fix": fix})
    for word, damage, fix in (
        ("wagon", "a wheel came off", "a new nail"),
        ("toy truck", "a wheel came off", "a little glue"),
        ("toy train", "the smallest wheel fell off", "a drop of glue"),
        ("toy boat", "the sail tore", "a bit of cloth"),
        ("kite", "the paper tore", "some paper and tape"),
        ("teddy bear", "one arm came loose", "a needle and thread"),
        ("rag doll", "one leg came loose", "a needle and thread"),
        ("puppet", "two strings snapped", "some new string"),
        ("birdhouse", "the roof fell off", "a hammer and a nail"),
        ("stool", "one leg cracked", "some wood and glue"),
        ("toy horse", "the tail fell off", "some wool and glue"),
        ("umbrella", "the cloth tore", "a needle and thread"),
        ("backpack", "the strap came off", "a needle and strong thread"),
        ("cape", "a big hole tore in it", "a patch and some thread"),
        ("toy plane", "a wing broke off", "a little glue"),
        ("toy robot", "an arm broke off", "a tiny screw"),
        ("scooter", "the handle came loose", "a big screw"),
        ("sled", "the rope snapped", "a new piece of rope"),
        ("swing", "the rope snapped", "a strong new rope"),
        ("drum", "the top split open", "a new piece of leather"),
        ("basket", "the handle snapped", "a few strips of willow"),
        ("music box", "the lid fell off", "a tiny hinge"),
    )
)

STORM_GAMES = tuple(
    Thing(word, {"use": use, "used": used})
    for word, use, used in (
        ("storybook", "read", "read"),
        ("drum", "play", "played"),
        ("puzzle", "do", "did"),
        ("flute", "play", "played"),
        ("guitar", "play", "played"),
        ("paint box", "paint with", "painted with"),
        ("board game", "play", "played"),
        ("puppet", "play with", "played with"),
        ("toy train", "play with", "played with"),
        ("song book", "sing from", "sang from"),
        ("picture book", "look at", "looked at"),
        ("toy castle", "play with", "played with"),
        ("piano", "play", "played"),
        ("dollhouse", "play with", "played with"),
        ("spinning top", "spin", "spun"),
        ("harp", "play", "played"),
    )
)

TOOLS = tuple(
    Thing(word, {"how": how})
    for word, how in (
        ("ladder", "put the ladder down into the hole"),
        ("rope", "tied the rope to a tree and let it down"),
        ("basket", "let the basket down on a long string"),
        ("plank", "laid the plank down like a bridge"),
        ("bucket", "let the bucket down on a rope"),
        ("net", "let the net down with care"),
        ("blanket", "held on to one end of the blanket and let the other end down"),
        ("branch", "pushed the branch down into the hole"),
        ("fishing rod", "let the line of the fishing rod down with a tiny basket on it"),
        ("scarf", "let the end of the scarf down into the hole"),
        ("broom", "pushed the broom down into the hole"),
        ("towel", "let the towel hang down into the hole"),
        ("kite string", "tied a small cup to the kite string and let it down"),
        ("wooden spoon", "held the wooden spoon far down into the hole"),
        ("umbrella", "held the handle of the umbrella down into the hole"),
        ("jump rope", "let one end of the jump rope down"),
    )
)

SKILLS = tuple(
    Thing(word, {"doing": doing, "mishap": mishap, "tip": tip})
    for word, doing, mishap, tip in (
        ("do a handstand", "doing a handstand", "fell over backwards", "Keep your legs straight"),
        ("whistle", "whistling", "made no sound at all", "Make a tiny round mouth"),
        ("skate", "skating", "slipped and sat down hard", "Bend your knees a little"),
        ("dance", "dancing", "got both feet mixed up", "Count to three and listen to the music"),
        ("juggle", "juggling", "dropped all the balls", "Begin with only two balls"),
        ("skip rope", "skipping rope", "got tangled in the rope", "Jump when the rope is in front of you"),
        ("ride a bicycle", "riding a bicycle", "fell into the soft grass", "Look ahead and not at your feet"),
        ("climb a tree", "climbing a tree", "slid back to the ground", "Hold on with both arms"),
        ("fly a kite", "flying a kite", "got the string in a knot", "Wait for the wind"),
        ("play the flute", "playing the flute", "made a terrible squeak", "Blow very gently"),
        ("play the drum", "playing the drum", "dropped both sticks", "Tap one beat at a time"),
        ("catch a ball", "catching a ball", "missed the ball", "Keep your eyes on the ball"),
        ("do a cartwheel", "doing a cartwheel", "fell over sideways", "Put one hand down first"),
        ("walk on stilts", "walking on stilts", "wobbled and fell off", "Take tiny steps"),
        ("tie a bow", "tying a bow", "made a big knot", "Make one loop like a bunny ear"),
        ("read a book", "reading a book", "got stuck on the first word", "Say one letter at a time"),
        ("draw a star", "drawing a star", "drew a funny potato", "Draw one line at a time"),
        ("sing a song", "singing a song", "forgot the words", "Sing one line and then the next"),
        ("knit a scarf", "knitting a scarf", "lost a stitch", "Count every stitch out loud"),
        ("stand on one leg", "standing on one leg", "tipped over", "Look at one spot and breathe"),
        ("roller skate", "roller skating", "rolled into a bush", "Push with one foot at a time"),
        (
            "build a tower",
            "building a tower",
            "made it so high that it fell down",
            "Put the big blocks first",
        ),
        ("paint a rainbow", "painting a rainbow", "made one big brown spot", "Let each color dry first"),
        ("make a paper boat", "making a paper boat", "tore the paper", "Fold it slowly and neatly"),
    )
)
