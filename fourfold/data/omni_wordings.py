"""How documents about media are worded: questions, requests and answers, many of each, none of them in a corpus.

{a} and {b} are names of things with their article, {t} is a caption as the corpus has it.
"""

from fourfold.modality import Modality

# what is in it: asked about a picture, a clip, speech, a sound
READ = {
    "image": (
        "What is this?",
        "What is in the picture?",
        "What does the picture show?",
        "Describe the picture.",
        "What do you see?",
        "Name what you see.",
        "Write a caption for this picture.",
        "What is shown here?",
    ),
    "clip": (
        "What happens in the clip?",
        "What does the clip show?",
        "Describe the clip.",
        "What do you see in this clip?",
        "Write a caption for this clip.",
        "What is moving, and how?",
    ),
    "speech": (
        "What is said?",
        "Write down what you hear.",
        "Transcribe the speech.",
        "What does the speaker say?",
        "Repeat what was said.",
        "Write the words that are spoken.",
    ),
    "sound": (
        "What sound is this?",
        "What do you hear?",
        "Name the sound.",
        "What kind of sound is it?",
        "What makes this sound?",
    ),
}
THERE = {
    "image": ("Is there {a}? yes/no", "Does the picture show {a}?", "Is this {a}?", "Can you see {a} in the picture?"),
    "clip": ("Is there {a}? yes/no", "Does the clip show {a}?", "Can you see {a} in the clip?"),
    "sound": ("Is this {a}? yes/no", "Do you hear {a}?", "Is it the sound of {a}?"),
}
EITHER = {
    "image": ("Is this {a} or {b}?", "What does the picture show, {a} or {b}?", "Which is it: {a} or {b}?"),
    "clip": ("What does the clip show, {a} or {b}?", "Which is it: {a} or {b}?"),
    "sound": ("Is this {a} or {b}?", "What do you hear, {a} or {b}?"),
}
MOTION = (
    "How does it move?",
    "Which way does it move?",
    "What is the motion?",
    "How does it move in the clip?",
    "Name the motion.",
)
# asked about a clip: where what moves stands in its first frame, and in its last
WHERE = {
    "first": ("Where is it at first?", "Where does it begin?", "Where is it in the first frame?"),
    "last": ("Where is it at the end?", "Where does it end up?", "Where is it in the last frame?"),
}
WHICH = ("Which picture shows {a}, the first or the second?", "One of them is {a}. Which one?", "Where is {a}: first or second?")
MATCHES = ("Does the speaker describe the picture? yes/no", "Is this what the picture shows?", "Do the words fit the picture?")
WHICH_SAID = ("Which of the two pictures is spoken of?", "Which picture does the speaker mean, the first or the second?")
DRAW = {
    "image": (
        "Draw {t}.",
        "Draw this: {t}",
        "Make a picture of {t}.",
        "Please draw {t}.",
        "A picture of {t}, please.",
        "Show me {t}.",
        "Paint {t}.",
    ),
    "clip": (
        "Film: {t}",
        "Make a clip: {t}",
        "Film this: {t}",
        "A clip of this, please: {t}",
        "Show me in a clip: {t}",
    ),
    "speech": ("Draw what you hear.", "Draw what is said.", "Make a picture of what the speaker names.", ""),
}
DRAWN = {
    "image": ("What have you drawn?", "What is in this picture?", "And what does this show?"),
    "clip": ("What have you filmed?", "What happens in this clip?", "And what does this clip show?"),
}
FIRST, SECOND, YES, NO = "the first", "the second", "yes", "no"
LEARNT_AS = {"image": Modality.IMAGE, "clip": Modality.VIDEO, "speech": Modality.AUDIO, "sound": Modality.AUDIO}


def with_article(name: str) -> str:
    """ "an umbrella", "a cat", and "grapes" as it is."""
    if name.startswith(("a ", "an ", "the ")) or (name.endswith("s") and not name.endswith(("ss", "us", "is"))):
        return name
    return f"{'an' if name[:1].lower() in set('aeiou') else 'a'} {name}"
