#!/usr/bin/env python3
"""Make the small demo model and the demo data set that stand beside this file.

Everything is made here, from nothing: no weights, text or data are downloaded.

  1. text       a seeded grammar writes chats and stories about one small village
  2. tokenizer  a byte-level BPE tokenizer is trained on that text
  3. model      a small Llama decoder is pretrained from scratch on the CPU
  4. model/     config.json, model.safetensors (bf16), tokenizer.json,
                tokenizer_config.json (with the chat template), generation_config.json
  5. data/      train.jsonl and valid.jsonl: the same kinds of question, answered
                in a style the model has never seen (a line of a ship's log)

Rerun (about 15 to 25 minutes on one CPU thread, no GPU):

    pip install torch==2.9.1 transformers==5.23.0 tokenizers==0.23.3 \\
                safetensors==0.8.0 numpy==2.4.6 jinja2==3.1.6
    python make.py              # everything
    python make.py --data-only  # only data/*.jsonl (a second)

The text, the tokenizer and the data are the same on every machine (Python's seeded
generator). The weights are seeded too, but come out the same to the last bit only
with the same torch build on the same kind of CPU.

Run with Python 3.11, torch 2.9.1, transformers 5.23.0, tokenizers 0.23.3.
Licence: MIT OR Apache-2.0, the text included.
"""

import argparse
import json
import math
import os
import random
import time

HERE = os.path.dirname(os.path.abspath(__file__))
SEED = 7
VOCAB = 1024
EOT, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
VILLAGE = "Elmbrook"

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

# ----------------------------------------------------------------------------- the world

# name, she/he, job, place of work, tool, what is made there, pet, pet's name, favourite food
VILLAGERS = [
    ("Mira", "she", "baker", "bakery", "oven", "bread", "cat", "Pip", "apples"),
    ("Tom", "he", "miller", "mill", "sack", "flour", "dog", "Rex", "soup"),
    ("Anna", "she", "smith", "forge", "hammer", "nails", "goat", "Bella", "plums"),
    ("Jonas", "he", "fisher", "lake", "net", "fish", "duck", "Coco", "cheese"),
    ("Lena", "she", "weaver", "cottage", "loom", "cloth", "rabbit", "Milo", "honey"),
    ("Otto", "he", "carpenter", "workshop", "saw", "tables", "hen", "Lulu", "cake"),
    ("Rosa", "she", "teacher", "school", "chalk", "lessons", "mouse", "Nero", "pears"),
    ("Felix", "he", "doctor", "hospital", "lamp", "medicine", "parrot", "Duke", "rice"),
    ("Clara", "she", "gardener", "garden", "spade", "roses", "crow", "Olga", "beans"),
    ("Hugo", "he", "shepherd", "meadow", "staff", "wool", "dog", "Bruno", "nuts"),
    ("Nina", "she", "potter", "kiln", "wheel", "bowls", "cat", "Luna", "eggs"),
    ("Paul", "he", "cook", "inn", "pot", "soup", "pony", "Star", "bread"),
    ("Ida", "she", "painter", "studio", "brush", "pictures", "owl", "Hazel", "carrots"),
    ("Max", "he", "beekeeper", "orchard", "hood", "honey", "frog", "Jumper", "fish"),
    ("Vera", "she", "tailor", "shop", "needle", "coats", "rabbit", "Snowy", "berries"),
    ("Emil", "he", "farmer", "farm", "plough", "wheat", "horse", "Thunder", "pies"),
]
NAMES = [v[0] for v in VILLAGERS]

# animal, sound, home, food, legs
ANIMALS = [
    ("cow", "moo", "barn", "grass", 4), ("dog", "woof", "kennel", "bones", 4),
    ("cat", "meow", "house", "fish", 4), ("bee", "buzz", "hive", "nectar", 6),
    ("hen", "cluck", "coop", "grain", 2), ("duck", "quack", "pond", "weeds", 2),
    ("sheep", "baa", "meadow", "clover", 4), ("pig", "oink", "sty", "corn", 4),
    ("horse", "neigh", "stable", "hay", 4), ("frog", "croak", "marsh", "flies", 4),
    ("owl", "hoot", "tree", "mice", 2), ("mouse", "squeak", "hole", "cheese", 4),
    ("goat", "meh", "shed", "leaves", 4), ("crow", "caw", "nest", "worms", 2),
    ("wolf", "howl", "den", "meat", 4),
]
# tool, what it is for
TOOLS = [
    ("saw", "cutting wood"), ("hammer", "driving nails"), ("spade", "digging holes"),
    ("needle", "sewing cloth"), ("brush", "painting walls"), ("pot", "cooking soup"),
    ("net", "catching fish"), ("lamp", "giving light"), ("broom", "sweeping floors"),
    ("rope", "tying boats"), ("oven", "baking bread"), ("ladder", "reaching roofs"),
    ("key", "opening doors"), ("bucket", "carrying water"), ("axe", "chopping trees"),
    ("plough", "turning soil"),
]
# weather, when, what to wear, what people do
WEATHER = [
    ("rain", "it rains", "coat", "stay inside"),
    ("snow", "it snows", "boots", "build snowmen"),
    ("sun", "the sun shines", "hat", "swim in the lake"),
    ("wind", "the wind blows", "scarf", "fly kites"),
    ("frost", "it freezes", "gloves", "skate on the pond"),
    ("fog", "there is fog", "cloak", "carry lamps"),
]
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
SEASONS = ["spring", "summer", "autumn", "winter"]
COLOURS = ["red", "blue", "green", "yellow", "white", "black", "brown", "grey"]
CLOTHES = ["hat", "coat", "scarf", "bag", "shirt", "cloak"]
ITEMS = ["key", "lamp", "rope", "bell", "book", "cup", "ball", "coin", "drum", "map",
         "spoon", "basket", "broom", "bucket", "axe", "ladder"]
SPOTS = ["in the box", "under the bench", "on the table", "behind the door", "in the barn",
         "near the well", "on the shelf", "under the bed", "by the fire", "on the cart"]
GOALS = ["mill", "bakery", "farm", "school", "inn", "lake", "forge", "garden", "barn",
         "well", "bridge", "market", "hill", "shop"]
COUNTED = ["apples", "pears", "plums", "nuts", "eggs", "carrots", "roses", "shells",
           "stones", "berries"]
SKY = ["rain", "snow", "sun", "wind", "frost", "fog"]


def an(word):
    return ("an " if word[0] in "aeiou" else "a ") + word


def cap(s):
    return s[0].upper() + s[1:]


# Every question maker returns (user, [plain answers], topic, tag). The topic is only used by
# the style the LoRA has to learn, which is never shown to the model in pretraining; the tag
# names the fact asked for (None for a question about facts in the prompt itself).

def log(topic, sentence):
    """The style to be learned: name the topic, then answer as in a ship's log."""
    return f"Log, {topic}: {sentence} Over."


def q_job(r):
    n, he, job, place, *_ = r.choice(VILLAGERS)
    u = r.choice([f"What does {n} do?", f"What is {n}'s job?", f"What work does {n} do?",
                  f"Tell me the job of {n}.", f"What is the work of {n}?"])
    return u, [f"{n} is the {job} of the village.", f"{n} is the {job}. {cap(he)} works at the {place}."], \
        "job", ("job", n)


def q_place(r):
    n, he, job, place, *_ = r.choice(VILLAGERS)
    u = r.choice([f"Where does {n} work?", f"Where can I find {n}?", f"In what place does {n} work?",
                  f"Tell me where {n} works."])
    return u, [f"{n} works at the {place}.", f"You can find {n} at the {place}."], \
        "place", ("place", n)


def q_tool(r):
    n, he, job, place, tool, *_ = r.choice(VILLAGERS)
    u = r.choice([f"What tool does {n} use?", f"Which tool does {n} need?", f"What does {n} work with?",
                  f"Name the tool of {n}."])
    return u, [f"{n} works with {an(tool) if tool != 'chalk' else tool}.",
               f"The {job} needs {an(tool) if tool != 'chalk' else tool}, so {n} has one."
               if tool != "chalk" else f"The teacher needs chalk, so {n} has some."], \
        "tool", ("tool", n)


def q_pet(r):
    n, he, *_, pet, pname, food = r.choice(VILLAGERS)
    u = r.choice([f"What pet does {n} have?", f"Which animal lives with {n}?", f"Tell me about the pet of {n}.",
                  f"Does {n} have a pet?"])
    return u, [f"{n} has {an(pet)} named {pname}.", f"{n} has a pet. It is {an(pet)} named {pname}."], \
        "pet", ("pet", n)


def q_food(r):
    n, *_, food = r.choice(VILLAGERS)
    u = r.choice([f"What does {n} like to eat?", f"What food does {n} like?", f"What is the best food for {n}?",
                  f"Name the food that {n} likes."])
    return u, [f"{n} likes to eat {food}.", f"{n} likes {food} best."], "food", ("food", n)


def q_who(r):
    n, he, job, place, *_ = r.choice(VILLAGERS)
    u = r.choice([f"Who is the {job}?", f"Which villager is the {job}?", f"Who works at the {place}?",
                  f"What is the name of the {job}?"])
    if "works" in u:
        return u, [f"{n} works at the {place}.", f"{n}, the {job}, works at the {place}."], \
            "name", ("who", job)
    return u, [f"The {job} is {n}.", f"{n} is the {job} of the village."], "name", ("who", job)


def q_makes(r):
    n, he, job, place, tool, made, *_ = r.choice(VILLAGERS)
    u = r.choice([f"What does the {job} make?", f"What is made by the {job}?", f"What comes from the {place}?",
                  f"What can I get at the {place}?"])
    s = job if job in u else place
    return u, [f"You can get {made} at the {place}.", f"The {job} makes {made} at the {place}."], \
        "goods", ("makes", job)


def q_sound(r):
    a, snd, *_ = r.choice(ANIMALS)
    u = r.choice([f"What does {an(a)} say?", f"What sound does {an(a)} make?", f"How does {an(a)} sound?"])
    return u, [f"{cap(an(a))} says {snd}.", f"The {a} says {snd}."], "sound", ("sound", a)


def q_home(r):
    a, snd, home, *_ = r.choice(ANIMALS)
    u = r.choice([f"Where does {an(a)} live?", f"Where does the {a} sleep?", f"What is the home of {an(a)}?"])
    return u, [f"{cap(an(a))} lives in {an(home)}.", f"The home of {an(a)} is {an(home)}."], \
        "home", ("home", a)


def q_afood(r):
    a, snd, home, food, _ = r.choice(ANIMALS)
    u = r.choice([f"What does {an(a)} eat?", f"What food does {an(a)} like?", f"What should I feed {an(a)}?"])
    return u, [f"{cap(an(a))} eats {food}.", f"{cap(an(a))} likes to eat {food}."], "food", ("afood", a)


def q_legs(r):
    a, *_, legs = r.choice(ANIMALS)
    u = r.choice([f"How many legs does {an(a)} have?", f"How many legs has {an(a)}?"])
    return u, [f"{cap(an(a))} has {legs} legs."], "legs", ("legs", a)


def q_use(r):
    t, use = r.choice(TOOLS)
    u = r.choice([f"What is {an(t)} for?", f"What do people use {an(t)} for?", f"What is the use of {an(t)}?"])
    return u, [f"{cap(an(t))} is for {use}.", f"People use {an(t)} for {use}."], "use", ("use", t)


def q_which_tool(r):
    t, use = r.choice(TOOLS)
    u = r.choice([f"Which tool is for {use}?", f"What do I need for {use}?", f"Name a tool for {use}."])
    return u, [f"You need {an(t)} for {use}.", f"The tool for {use} is {an(t)}."], \
        "tool", ("which", t)


def q_wear(r):
    w, when, wear, do = r.choice(WEATHER)
    a = wear if wear in ("boots", "gloves") else an(wear)
    u = r.choice([f"What should I wear when {when}?", f"What do people wear when {when}?",
                  f"What is good to wear in the {w}?"])
    return u, [f"When {when}, people wear {a}.", f"You should wear {a} when {when}."], \
        "weather", ("wear", w)


def q_do(r):
    w, when, wear, do = r.choice(WEATHER)
    u = r.choice([f"What do people do when {when}?", f"What can we do when {when}?",
                  f"What happens in {VILLAGE} when {when}?"])
    return u, [f"When {when}, people {do}.", f"People {do} when {when}."], "weather", ("do", w)


def q_sum(r):
    a, b = r.randint(0, 10), r.randint(0, 10)
    u = r.choice([f"What is {a} plus {b}?", f"How much is {a} plus {b}?", f"Add {a} and {b}."])
    return u, [f"{a} plus {b} is {a + b}.", f"The sum of {a} and {b} is {a + b}."], \
        "sum", ("sum", f"{a}+{b}")


def q_minus(r):
    a = r.randint(1, 12)
    b = r.randint(0, min(a, 10))
    u = r.choice([f"What is {a} minus {b}?", f"How much is {a} minus {b}?", f"Take {b} from {a}."])
    return u, [f"{a} minus {b} is {a - b}."], "rest", ("minus", f"{a}-{b}")


def q_count(r):
    a = r.randint(1, 12)
    b = a + r.randint(2, 4)
    u = r.choice([f"Count from {a} to {b}.", f"Please count from {a} to {b}.", f"Can you count from {a} to {b}?"])
    seq = ", ".join(str(i) for i in range(a, b + 1))
    return u, [f"Here you go: {seq}."], "count", ("count", f"{a}-{b}")


def q_next(r):
    k = r.randrange(3)
    if k == 0:
        i = r.randrange(7)
        a, b, w = DAYS[i], DAYS[(i + 1) % 7], "day"
    elif k == 1:
        i = r.randrange(4)
        a, b, w = SEASONS[i], SEASONS[(i + 1) % 4], "season"
    else:
        i = r.randint(1, 19)
        a, b, w = str(i), str(i + 1), "number"
    u = r.choice([f"What comes after {a}?", f"Which {w} comes after {a}?", f"Which {w} follows {a}?"])
    return u, [f"{cap(w)} {b} comes after {a}." if w == "number" else f"{b} comes after {a}.".replace(b, cap(b), 1),
               f"After {a} comes {b}."], "next", ("next", a)


# --- questions about facts given in the prompt
#
# A context maker returns (text, [(question, [plain answers], topic), ...]).

def filler(r):
    """A sentence that has nothing to do with the question."""
    n = r.choice(NAMES)
    return r.choice([
        f"It was a quiet {r.choice(['morning', 'evening', 'day'])} in {VILLAGE}.",
        f"{n} sang a song by the well.", f"{n} walked along the river.",
        f"The {r.choice(ANIMALS)[0]} slept in the shade.",
        f"{n} told a long story.", f"The bell rang {r.choice(['twice', 'once'])}.",
        f"Over the bridge came {n}.", f"{n} was happy.", f"Log fires burned in the {r.choice(GOALS)}.",
        f"The children played near the {r.choice(GOALS)}.",
    ])


def mix(r, facts):
    """The facts in random order, at times with idle sentences between them."""
    facts = list(facts)
    r.shuffle(facts)
    k = r.random()
    for _ in range(0 if k < 0.5 else r.randint(1, 2) if k < 0.9 else r.randint(3, 7)):
        facts.insert(r.randint(0, len(facts)), filler(r))
    return " ".join(facts)


def c_colour(r):
    k = r.randint(2, 4)
    ns, cs = r.sample(NAMES, k), r.sample(COLOURS, k)
    c = r.choice(CLOTHES)
    v = r.choice(["has", "wears"]) if c != "bag" else "has"
    base = {"has": "have", "wears": "wear"}[v]
    facts = [f"{n} {v} a {x} {c}." for n, x in zip(ns, cs)]
    qs = []
    for n, x, f in zip(ns, cs, facts):
        qs.append((r.choice([f"What colour is the {c} of {n}?", f"Which {c} does {n} {base}?",
                             f"What does {n} {base}?"]), [f], "colour"))
        qs.append((r.choice([f"Who {v} the {x} {c}?", f"Who {v} a {x} {c}?"]), [f], "name"))
    return mix(r, facts), qs


def c_spot(r):
    k = r.randint(2, 4)
    its, sp = r.sample(ITEMS, k), r.sample(SPOTS, k)
    facts = [f"The {i} is {s}." for i, s in zip(its, sp)]
    qs = []
    for i, s, f in zip(its, sp, facts):
        qs += [(r.choice([f"Where is the {i}?", f"Where can I find the {i}?", f"I need the {i}. Where is it?"]),
                [f], "place")] * 2
        qs.append((r.choice([f"What is {s}?", f"What can I find {s}?"]), [f], "thing"))
    return mix(r, facts), qs


def c_carry(r):
    k = r.randint(2, 3)
    ns, its, gs = r.sample(NAMES, k), r.sample(ITEMS, k), r.sample(GOALS, k)
    v = r.choice(["carries", "takes", "brings"])
    base = {"carries": "carry", "takes": "take", "brings": "bring"}[v]
    facts = [f"{n} {v} {an(i)} to the {g}." for n, i, g in zip(ns, its, gs)]
    qs = []
    for n, i, g, f in zip(ns, its, gs, facts):
        qs += [(f"What does {n} {base}?", [f], "thing"), (f"Where does {n} go?", [f], "place"),
               (r.choice([f"Who {v} the {i}?", f"Who has the {i}?", f"Who goes to the {g}?"]), [f], "name")]
    return mix(r, facts), qs


def c_more(r):
    k = r.randint(2, 3)
    ns, nums = r.sample(NAMES, k), r.sample(range(2, 13), k)
    c = r.choice(COUNTED)
    v = r.choice(["picked", "found", "has", "sold"])
    facts = [f"{n} {v} {a} {c}." for n, a in zip(ns, nums)]
    qs = []
    for n, a, f in zip(ns, nums, facts):
        q = f"How many {c} does {n} have?" if v == "has" else \
            f"How many {c} did {n} {dict(picked='pick', found='find', sold='sell')[v]}?"
        qs += [(q, [f], "number")] * 2
        qs.append((f"Who {v} {a} {c}?", [f], "name"))
    return mix(r, facts), qs


def c_sky(r):
    k = r.randint(2, 4)
    ds, ws = r.sample(DAYS, k), r.sample(SKY, k)
    facts = [f"On {d} there was {w}." for d, w in zip(ds, ws)]
    qs = []
    for d, w, f in zip(ds, ws, facts):
        qs += [(r.choice([f"How was the weather on {d}?", f"What was the weather on {d}?"]), [f], "weather")] * 2
        qs.append((r.choice([f"On which day was there {w}?", f"When was there {w}?"]), [f], "day"))
    return mix(r, facts), qs


def c_buy(r):
    """A short story with a price or a trade."""
    n, s = r.sample(NAMES, 2)
    i, g, w = r.choice(ITEMS), r.choice(GOALS), r.choice(SKY)
    p = r.randint(2, 12)
    d = r.choice(DAYS)
    text = " ".join([
        r.choice([f"On {d} {n} went to the {g}.", f"{n} went to the {g} on {d}."]),
        r.choice([f"There was {w} on the way.", "The road was long.", filler(r)]),
        r.choice([f"There {s} sold {n} {an(i)} for {p} coins.", f"{n} bought {an(i)} from {s} for {p} coins."]),
        r.choice([f"Then {n} went home.", f"In the evening {n} was tired.", f"{s} said thank you."]),
    ])
    return text, [(f"What did {n} buy?", [f"{n} bought {an(i)}."], "thing"),
                  (f"How much was the {i}?", [f"The {i} was {p} coins."], "coins"),
                  (f"Where did {n} go?", [f"{n} went to the {g}."], "place"),
                  (f"Who sold the {i}?", [f"{s} sold the {i}."], "name")]


def in_context(r, turns=1):
    """[(user, [plain answers], topic), ...]: the facts stand in the first turn."""
    text, qs = r.choices(CONTEXT, CONTEXT_W)[0](r)
    picked = []
    for q in r.sample(qs, len(qs)):
        if q[0] not in [p[0] for p in picked]:
            picked.append(q)
    picked = picked[:turns]
    u, a, topic = picked[0]
    return [(f"{text} {u}", a, topic)] + picked[1:]


WORLD = [q_job, q_place, q_tool, q_pet, q_food, q_who, q_makes, q_sound, q_home, q_afood, q_legs,
         q_use, q_which_tool, q_wear, q_do, q_sum, q_minus, q_count, q_next]
WORLD_W = [3, 3, 2.5, 3, 2.5, 3, 2.5, 2, 2, 2, 1, 2, 2, 1, 1, 5, 4, 1.5, 1.5]
CONTEXT = [c_colour, c_spot, c_carry, c_more, c_sky, c_buy]
CONTEXT_W = [4, 4, 4, 3, 3, 2]


def question(r, p_context):
    if r.random() < p_context:
        return (*in_context(r)[0], None)
    return r.choices(WORLD, WORLD_W)[0](r)


# --- small talk, follow-ups and stories (pretraining only)

def small_talk(r):
    return r.choice([
        (r.choice(["Hello!", "Hi!", "Good morning!", "Hello there."]),
         r.choice([f"Hello! Ask me about the village of {VILLAGE}.", "Hello! How can I help you?"])),
        (r.choice(["Who are you?", "What are you?"]),
         f"I am a small model. I know the village of {VILLAGE}, its people and its animals."),
        (r.choice(["Thank you.", "Thanks!", "Thank you very much."]), "You are welcome!"),
        (r.choice(["What is the village called?", "What is the name of the village?"]),
         f"The village is called {VILLAGE}."),
        (r.choice(["Who lives in the village?", f"Who lives in {VILLAGE}?"]),
         "Many people live here. " + ", ".join(NAMES[:4]) + " and many more."),
        (r.choice(["What can you do?", "Help!"]),
         "I can answer questions about people, animals, tools, weather and small sums."),
    ])


def follow_up(r):
    """A second turn that speaks of the same villager by pronoun."""
    n, he, job, place, tool, made, pet, pname, food = r.choice(VILLAGERS)
    first = r.choice([(f"Who is {n}?", f"{n} is the {job} of {VILLAGE}."),
                      (f"What does {n} do?", f"{n} is the {job} of the village.")])
    second = r.choice([(f"Where does {he} work?", f"{cap(he)} works at the {place}."),
                       (f"What pet does {he} have?", f"{cap(he)} has {an(pet)} named {pname}."),
                       (f"What does {he} like to eat?", f"{cap(he)} likes to eat {food}."),
                       (f"What does {he} make?", f"{cap(he)} makes {made}.")])
    return [first, second]


def tell(r, n):
    """The answer to 'tell me a story about ...'."""
    v = VILLAGERS[NAMES.index(n)]
    n, he, job, place, tool, made, pet, pname, food = v
    w, when, wear, do = r.choice(WEATHER)
    his = "her" if he == "she" else "his"
    a = wear if wear in ("boots", "gloves") else an(wear)
    other = r.choice([x for x in NAMES if x != n])
    it = r.choice(ITEMS)
    s = [r.choice([f"One morning {n} the {job} went to the {place}.", f"One day {n} woke up early and went to the {place}."]),
         r.choice([f"There was {w}, so {he} wore {a}.", f"{cap(his)} {pet} {pname} came along.",
                   f"Over the hill came {other} with {an(it)}.", f"Log fires burned and {he} was warm."]),
         r.choice([f"{cap(he)} made {made} until noon.", f"{cap(he)} worked until the evening.",
                   f"{other} came to help, and they made {made}."]),
         r.choice([f"Then {he} ate {food} by the fire.", f"At night {he} ate {food} and slept well.",
                   f"{n} gave some {made} to {other}; {other} gave {his} friend {food}.",
                   f"At home {pname} the {pet} was waiting."])]
    return " ".join(s)


def story(r):
    n = r.choice(NAMES)
    k = r.random()
    if k < 0.6:
        return tell(r, n)
    if k < 0.8:
        w, when, wear, do = r.choice(WEATHER)
        return " ".join([f"When {when} in {VILLAGE}, people {do}.", filler(r), filler(r), tell(r, n)])
    out = []
    for x in r.sample(VILLAGERS, 3):
        n, he, job, place, tool, made, pet, pname, food = x
        out.append(r.choice([f"{n} the {job} has {an(pet)}; its name is {pname}.",
                             f"At the {place} there are three things: {made}, {food} and {n}'s {pet}.",
                             f"{n} works at the {place} and makes {made}."]))
    return " ".join(out + [filler(r)])


def echo(r):
    """Saying something again, word by word."""
    if r.random() < 0.5:
        text = r.choices(CONTEXT, CONTEXT_W)[0](r)[0]
    else:
        text = cap(" ".join(r.choice([ITEMS, COLOURS, NAMES, COUNTED, GOALS][r.randrange(5)])
                            for _ in range(r.randint(4, 12)))) + "."
    return r.choice(["Say it again: ", "Repeat this: "]) + text, text


def document(r, banned=frozenset()):
    """One pretraining document: ('chat', [(user, assistant), ...]) or ('text', story)."""
    k = r.random()
    if k < 0.07:
        return "text", story(r)
    if k < 0.09:
        return "chat", [small_talk(r)]
    if k < 0.12:
        return "chat", follow_up(r)
    if k < 0.14:
        n = r.choice(NAMES)
        return "chat", [(r.choice([f"Tell me a story about {n}.", f"Please tell a story about {n}."]), tell(r, n))]
    if k < 0.20:
        return "chat", [echo(r)]
    if k < 0.45:
        return "chat", [(u, r.choice(answers)) for u, answers, *_ in
                        (question(r, 0.0) for _ in range(2 if r.random() < 0.1 else 1))]
    while True:
        turns = in_context(r, r.choice([1, 2, 3, 4]))
        if turns[0][0] not in banned:
            return "chat", [(u, r.choice(answers)) for u, answers, _ in turns]


# ----------------------------------------------------------------------------- LoRA data

# What the model has learned by heart. It is weak at sums, and with several people or things
# of one kind in a prompt it mixes them up, so the demo data asks about neither.
KNOWN = [q_job, q_place, q_tool, q_pet, q_food, q_who, q_makes, q_sound, q_home, q_afood,
         q_use, q_which_tool, q_wear, q_do]


def known(r):
    u, answers, topic, tag = r.choices(KNOWN, [WORLD_W[WORLD.index(f)] for f in KNOWN])[0](r)
    k = r.random()  # idle sentences first, so that rows have all lengths
    idle = [filler(r) for _ in range(0 if k < 0.4 else r.randint(1, 3) if k < 0.8 else r.randint(4, 8))]
    return " ".join(idle + [u]), answers, topic, tag


def mixed(r):
    return question(r, 0.55)


def log_rows(ask, n_train, n_valid):
    """Train and valid rows in the log style. No prompt is in both, and a seventh of the
    world facts are asked about only in valid, so that a right answer there has to come
    from what the model already knows."""
    r = random.Random(SEED + 100)

    def held(tag):
        return random.Random(f"{SEED}/{tag[0]}/{tag[1]}").random() < 1 / 7

    train, valid, seen = [], [], set()
    while len(train) < n_train or len(valid) < n_valid:
        u, answers, topic, tag = ask(r)
        lg = log(topic, answers[0])
        if u in seen:
            continue
        is_valid = held(tag) if tag else r.random() < 0.08
        if is_valid and len(valid) < n_valid:
            # a mixed valid set is kept balanced: half facts of the world, half facts in the prompt
            if ask is mixed and sum((t is None) == (tag is None) for _, _, t in valid) >= n_valid // 2:
                continue
            valid.append((u, lg, tag))
            seen.add(u)
        elif not is_valid and len(train) < n_train:
            train.append((u, lg, tag))
            seen.add(u)
    return train, valid


def write_data(train, valid):
    os.makedirs(os.path.join(HERE, "data"), exist_ok=True)
    for name, rows in (("train", train), ("valid", valid)):
        with open(os.path.join(HERE, "data", name + ".jsonl"), "w", encoding="utf-8", newline="\n") as f:
            for u, a, _ in rows:
                f.write(json.dumps({"messages": [{"role": "user", "content": u},
                                                 {"role": "assistant", "content": a}]}) + "\n")


# ----------------------------------------------------------------------------- tokenizer

def train_tokenizer(train_rows):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    r = random.Random(SEED + 1)

    def texts():
        for _ in range(20000):
            kind, d = document(r)
            if kind == "text":
                yield d
            else:
                for u, a in d:
                    yield "user\n" + u
                    yield "assistant\n" + a
        for u, a, _ in train_rows:
            yield a
        # a little of everything a person may type, so that it does not fall to single bytes
        for _ in range(200):
            yield " ".join(str(i) for i in range(21)) + " ! ? ( ) [ ] { } \" ' - + = / * # % & @ :"

    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    tok.train_from_iterator(texts(), trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=[EOT, IM_START, IM_END], show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())))
    return tok


# ----------------------------------------------------------------------------- pretraining

def encode(tok, docs):
    """Documents to (ids, weights): the words of the user count less than the answers."""
    s, e, nl = tok.token_to_id(IM_START), tok.token_to_id(IM_END), tok.encode("\n").ids
    eot = tok.token_to_id(EOT)
    flat = []
    for kind, d in docs:
        if kind == "text":
            flat.append(d)
        else:
            for u, a in d:
                flat += ["user\n" + u, "assistant\n" + a]
    enc = iter(tok.encode_batch(flat, add_special_tokens=False))
    out = []
    for kind, d in docs:
        ids, w = [], []
        if kind == "text":
            x = next(enc).ids
            ids, w = x + [eot], [1.0] * (len(x) + 1)
        else:
            for _ in d:
                x = next(enc).ids
                ids += [s] + x + [e] + nl
                w += [0.1] + [0.15] * len(x) + [0.15] + [0.1] * len(nl)
                x = next(enc).ids
                h = 2  # "assistant" and the newline after it
                ids += [s] + x + [e] + nl
                w += [0.1] + [0.1] * h + [1.0] * (len(x) - h) + [1.0] + [0.1] * len(nl)
        out.append((ids, w))
    return out


class Packer:
    """Rows of `length` + 1 tokens; each begins where a document begins."""

    def __init__(self, tok, seed, banned):
        self.tok, self.r, self.banned, self.docs = tok, random.Random(seed), banned, []

    def batch(self, rows, length):
        import torch
        ids, ws = [], []
        for _ in range(rows):
            a, b = [], []
            while len(a) < length + 1:
                if not self.docs:
                    self.docs = encode(self.tok, [document(self.r, self.banned) for _ in range(512)])
                x, w = self.docs.pop()
                a += x
                b += w
            ids.append(a[:length + 1])
            ws.append(b[:length + 1])
        ids, ws = torch.tensor(ids), torch.tensor(ws)
        return ids[:, :-1], ids[:, 1:], ws[:, 1:]


def pretrain(tok, banned, steps, peak_lr):
    import torch
    from torch.nn import functional as F
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(SEED)
    torch.set_num_threads(1)  # two wait for each other where the machine has other work
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=128, intermediate_size=384, num_hidden_layers=6,
        num_attention_heads=4, num_key_value_heads=2, head_dim=32, max_position_embeddings=512,
        rms_norm_eps=1e-5, tie_word_embeddings=True, initializer_range=0.04,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        bos_token_id=tok.token_to_id(EOT), eos_token_id=tok.token_to_id(IM_END),
        pad_token_id=tok.token_to_id(EOT))
    model = LlamaForCausalLM(config)
    print("parameters", sum(p.numel() for p in model.parameters()), flush=True)
    decay = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    opt = torch.optim.AdamW([{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}],
                            lr=peak_lr, betas=(0.9, 0.98), eps=1e-8)
    pack, held = Packer(tok, SEED + 2, banned), Packer(tok, SEED + 3, banned)
    held = [held.batch(8, 256) for _ in range(8)]

    def loss_of(batch):
        x, y, w = batch
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=x, use_cache=False).logits
        losses = F.cross_entropy(logits.float().view(-1, VOCAB), y.reshape(-1), reduction="none")
        w = w.reshape(-1)
        return (losses * w).sum() / w.sum(), losses[w == 1.0].mean()

    t0 = time.monotonic()
    long_from = int(steps * 0.85)  # the last part sees longer rows, so that all 512 places are used
    for step in range(steps):
        warm = min(1.0, (step + 1) / 200)
        lr = peak_lr * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        for g in opt.param_groups:
            g["lr"] = lr
        loss, answers = loss_of(pack.batch(8, 256) if step < long_from else pack.batch(4, 512))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        opt.zero_grad(set_to_none=True)
        if step % 200 == 0 or step == steps - 1:
            with torch.no_grad():
                model.eval()
                h = sum(loss_of(b)[1].item() for b in held) / len(held)
                model.train()
            print(f"step {step:5d}  loss {loss.item():.4f}  answers {answers.item():.4f}  "
                  f"held-out answers {h:.4f}  {time.monotonic() - t0:.0f} s", flush=True)
    print(f"pretrained in {time.monotonic() - t0:.0f} s", flush=True)
    return model.eval()


def save(tok, model):
    import torch
    from transformers import GenerationConfig, PreTrainedTokenizerFast
    out = os.path.join(HERE, "model")
    os.makedirs(out, exist_ok=True)
    fast = PreTrainedTokenizerFast(tokenizer_object=tok, bos_token=EOT, pad_token=EOT, eos_token=IM_END,
                                   additional_special_tokens=[IM_START], model_max_length=512,
                                   clean_up_tokenization_spaces=False)
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(out, save_jinja_files=False)
    model.generation_config = GenerationConfig(bos_token_id=tok.token_to_id(EOT), pad_token_id=tok.token_to_id(EOT),
                                               eos_token_id=tok.token_to_id(IM_END))
    model.to(torch.bfloat16).save_pretrained(out)
    for f in os.listdir(out):
        os.chmod(os.path.join(out, f), 0o644)


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--data-only", action="store_true")
    ap.add_argument("--steps", type=int, default=3200)
    ap.add_argument("--lr", type=float, default=2e-3)
    ap.add_argument("--train-rows", type=int, default=800)
    ap.add_argument("--valid-rows", type=int, default=64)
    args = ap.parse_args()
    write_data(*log_rows(known, args.train_rows, args.valid_rows))
    if args.data_only:
        return
    # the tokenizer also sees the log style, on every kind of question there is
    train, valid = log_rows(mixed, 800, 64)
    tok = train_tokenizer(train)
    banned = frozenset(u for u, _, tag in valid if tag is None)  # kept out of the pretraining text
    model = pretrain(tok, banned, args.steps, args.lr)
    save(tok, model)


if __name__ == "__main__":
    main()
