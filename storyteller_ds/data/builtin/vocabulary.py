"""Who the stories are about and where they happen: characters, traits, places, helpers and word pools.

The helpers and the hero's kinds share no word, and neither do the names of girls and boys: a story then
never has two characters that the reader could take for one another.
"""

from typing import NamedTuple

GIRL_NAMES = (
    *("Lily", "Mia", "Anna", "Sue", "Lucy", "Emma", "Rose", "Daisy", "Ella", "Nora", "Zoe", "Ruby"),
    *("Amy", "Clara", "Molly", "Ivy", "Grace", "Holly", "Penny", "Maya", "Tessa", "Nina", "Lola", "Kate"),
    *("Bella", "Jane", "Poppy", "Sara", "Wendy", "Olive", "Fern", "Hazel", "Pearl", "Dora", "June", "Tilly"),
)

BOY_NAMES = (
    *("Tom", "Ben", "Max", "Sam", "Tim", "Jack", "Leo", "Finn", "Pip", "Oscar", "Toby", "Henry"),
    *("Bob", "Noah", "Luke", "Adam", "Felix", "Otto", "Hugo", "Milo", "Theo", "Eli", "Charlie", "Joe"),
    *("Billy", "Danny", "Oliver", "George", "Peter", "Andy", "Rex", "Kit", "Ned", "Jasper", "Simon", "Mark"),
)

HERO_ANIMALS = (
    *("fox", "rabbit", "bear", "mouse", "kitten", "puppy", "hedgehog", "squirrel", "frog", "pig", "lamb"),
    *("otter", "panda", "badger", "mole", "raccoon", "monkey", "koala", "penguin", "elephant", "lion"),
)

SIZES = ("little", "small", "young", "cheerful little", "sweet little", "tiny")


class Trait(NamedTuple):
    """A trait and the clause that shows it; the clause begins with the hero's pronoun."""

    word: str
    shown_by: str


TRAITS = (
    Trait("curious", "{he} asked questions about everything."),
    Trait("curious", "{he} looked under every stone."),
    Trait("kind", "{he} always had a nice word for everyone."),
    Trait("kind", "{he} never forgot to say hello."),
    Trait("cheerful", "{he} hummed a little song all day long."),
    Trait("cheerful", "{he} smiled even when it rained."),
    Trait("shy", "{he} spoke in a soft voice."),
    Trait("shy", "{he} liked to hide behind {his} {elder}."),
    Trait("brave", "{he} was not even afraid of big bugs."),
    Trait("clever", "{he} could count all the way to one hundred."),
    Trait("clever", "{he} knew the answer to every riddle."),
    Trait("gentle", "{he} never stepped on a flower."),
    Trait("gentle", "{he} let the bugs sit on {his} nose."),
    Trait("playful", "{he} could turn anything into a game."),
    Trait("playful", "{he} loved to run and jump."),
    Trait("stubborn", "{he} never wanted to give up."),
    Trait("stubborn", "{he} did not like the word no."),
    Trait("quiet", "{he} liked to sit and watch the clouds."),
    Trait("funny", "{he} made everyone laugh."),
    Trait("funny", "{he} told silly jokes at breakfast."),
    Trait("careful", "{he} looked twice before every jump."),
    Trait("busy", "{he} had a new idea every day."),
    Trait("busy", "{he} never sat still for long."),
    Trait("friendly", "{he} waved at everyone who passed by."),
    Trait("friendly", "{he} liked to talk to the birds."),
    Trait("hungry", "{he} always had a cookie in {his} pocket."),
    Trait("sleepy", "{he} loved to nap in the sun."),
    Trait("impatient", "{he} did not like to wait."),
    Trait("polite", "{he} always said please."),
    Trait("dreamy", "{he} made up stories about the moon."),
    Trait("proud", "{he} liked to do everything alone."),
    Trait("messy", "{he} often had mud on {his} nose."),
)


class Place(NamedTuple):
    """A place and the preposition that one is there with: "on" the beach, "by" the pond."""

    preposition: str
    noun: str


PLACES = (
    *(Place("in", noun) for noun in ("park", "forest", "meadow", "garden", "orchard", "valley", "field")),
    *(Place("in", noun) for noun in ("village square", "barnyard", "schoolyard", "pine woods", "old castle")),
    *(Place("in", noun) for noun in ("rose garden", "apple orchard", "sunny glade", "quiet street")),
    *(Place("in", noun) for noun in ("flower field", "corn field", "town square", "green valley")),
    *(Place("by", noun) for noun in ("river", "lake", "pond", "stone bridge", "water mill", "old oak tree")),
    *(Place("by", noun) for noun in ("lighthouse", "train station", "fountain", "duck pond", "waterfall")),
    *(Place("by", noun) for noun in ("brook", "windmill", "big red barn", "harbor", "library", "sea")),
    *(Place("at", noun) for noun in ("playground", "farm", "market", "zoo", "bakery", "fairground")),
    *(Place("on", noun) for noun in ("beach", "green hill", "sand dunes", "village green", "high hill")),
)


class Helper(NamedTuple):
    """A helper: the adjective of the first mention and the noun that names the helper from then on."""

    adjective: str
    noun: str


HELPERS = (
    *(Helper("old", noun) for noun in ("owl", "turtle", "horse", "goose", "farmer", "sailor", "gardener")),
    *(Helper("wise", noun) for noun in ("raven", "tortoise", "goat", "crane", "teacher", "donkey")),
    *(Helper("kind", noun) for noun in ("baker", "deer", "cow", "swan", "postman", "nurse", "neighbor")),
    *(Helper("friendly", noun) for noun in ("beaver", "robin", "sheep", "dolphin", "carpenter", "parrot")),
    *(Helper("gray", noun) for noun in ("pigeon", "seal", "wolf", "heron")),
    *(Helper("big", noun) for noun in ("moose", "camel", "ox", "fireman", "eagle", "buffalo")),
)

# Those who live with the hero, and whether the word is a woman's.
ELDERS = (("mom", True), ("dad", False), ("grandma", True), ("grandpa", False))

COLORS = ("red", "blue", "green", "yellow", "orange", "purple", "pink", "white", "golden", "silver", "brown")
LOOKS = (*COLORS, "shiny", "tiny", "striped", "pretty", "special", "bright blue", "dark green", "bright red")
SIZES_OF_PLANTS = ("big", "fine", "lovely", "huge", "beautiful", "splendid")
LOADS = ("heavy", "big", "huge", "very heavy", "big brown", "large")
FLAVORS = ("honey", "apple", "cherry", "lemon", "carrot", "nut", "plum", "berry", "banana", "peach")

HIDING_PLACES = (
    *("under a bush", "behind a big rock", "in the tall grass", "next to a hollow log", "under the bench"),
    *("behind the fence", "beside a puddle", "near a pile of leaves", "near the gate", "behind a tall tree"),
    *("in a patch of clover", "between two roots", "next to an old cart", "beside the wall"),
)

FOUND_INSTEAD = (
    *("a dry leaf", "a round pebble", "an old shoe", "a sleepy snail", "a feather", "a busy ant", "an acorn"),
    *("a green beetle", "a pine cone", "an empty shell", "a wet sock", "a bit of string", "a tiny mushroom"),
)

CREATURES = ("duckling", "baby bird", "chick", "gosling", "lizard", "toad", "hamster", "chipmunk", "newt")

SHADOW_MAKERS = (
    *("a coat on a hook", "a branch outside the window", "a hat on a chair", "a pile of pillows"),
    *("a shirt on the door", "a tall plant in a pot", "an umbrella in the corner", "a sock on the lamp"),
)

# Words that may change each time they are used: templates write them as <pool>.
POOLS: dict[str, tuple[str, ...]] = {
    "one_day": (
        *("One day", "One morning", "One sunny day", "One afternoon", "One warm day", "One bright morning"),
        *("One fine day", "One spring morning", "One Sunday", "One windy day", "One cool morning"),
    ),
    "glad": ("happy", "glad", "very happy", "so happy", "full of joy", "very glad"),
    "sad": ("sad", "very sad", "unhappy", "so sad", "very unhappy"),
    "proud": ("proud", "very proud", "proud and happy", "so proud"),
    "afraid": ("afraid", "scared", "very scared", "a little afraid"),
    "afraid_short": ("afraid", "scared", "too shy"),
    "glad_short": ("happy", "glad", "light"),
    "just_then": ("Just then", "At that moment", "A little later", "Soon", "After a while"),
    "came_by": ("came by", "walked by", "came along", "stopped by", "came down the path"),
    "smiled": ("smiled", "gave a big smile", "laughed", "nodded", "gave a soft smile"),
    "thanks": ("Thank you", "Thank you so much", "Oh, thank you", "Thank you very much"),
    "softly": ("softly", "in a small voice", "quietly", "in a quiet voice"),
    "kindly": ("kindly", "gently", "in a warm voice", "with a smile"),
    "joyfully": ("happily", "with joy", "with a big smile", "in a happy voice"),
    "hugged": ("hugged", "put both arms around", "ran to hug"),
    "fast": ("fast", "quickly", "as fast as {he} could", "right away"),
    "never_forgot": ("never forgot that", "knew that", "always remembered that"),
    "loudly": ("loudly", "for a long time", "with joy"),
    "fast_they": ("quickly", "as fast as they could", "right away"),
    "learned": ("learned that", "understood that", "found out that", "now knew that"),
    "from_then_on": ("From that day on", "After that", "Ever since that day", "From then on"),
    "in_the_end": ("In the end", "At last", "Finally"),
    "in_the_end_low": ("in the end", "at last", "finally"),
    "great": ("great", "wonderful", "lovely", "nice"),
}
