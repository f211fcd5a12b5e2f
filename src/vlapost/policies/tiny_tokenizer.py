"""A tokenizer in Llama-2's layout for the small policy, trained on the sentences of benchmark and pretraining world.

Llama's own tokenizer may not be shipped with this project. This one has the same special ids, the same rules (a space
becomes "▁", unknown characters become bytes) and the same id space of 32000, so that every constant of the large
model is the true one; only the learned word pieces are others.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from vlapost.policies.prompt import PAD, SPACE

OBJECTS = """
carrot, kitchen shovel, bread, plastic bottle, 7up can, zuchinni, ketchup bottle, watering can, pipe, toy bear,
fast food cup, plant, banana, hamburger, golf ball, bbq sauce, travel cup, pepper, nonstop can, potato, baguette,
champagne glass, kitchen spoon, onion, cup
"""
RECEPTACLES = """
plate, cloth, carpet, newspaper, sheet metal, drawing tablet, tomato slice, pizza, flat bowl, gramophone disk,
frying pan, mouse pad, cutting board, chess board, manhole cover, envelope, notepad
"""
TEMPLATES = """
put C on P
place the C on the P
set C on P
move the C to the P
take the C and put it on the P
pick up C and set it down on P
please put the C on the P
put C onto P.
place the C onto the P surface
make sure C is on P.
on the P, put the C
put the C where the P is
move the C from the table to the P
move C so it’s on P.
can you put C on P?
C on the P, please.
the C should be placed on the P.
"""
COLOURS = "red, orange, yellow, green, teal, blue, purple, pink, brown, black, white, grey"
WORLD_OBJECTS = "box, ball, egg, block, beaker, roll, flask, stick, bun, tool, doll, jug"
WORLD_RECEPTACLES = "plate, mat, dish, board"
FIRST_PIECE = 259  # after <unk>, <s>, </s> and the 256 bytes


def sentences() -> list[str]:
    """Every prompt of the benchmark and those of the pretraining world's words, without the question's end."""
    colours = COLOURS.split(", ")
    things, places = ([f"{colour} {word}" for colour in colours for word in words.split(", ")]
                      for words in (WORLD_OBJECTS, WORLD_RECEPTACLES))  # fmt: skip
    instructions = [f"put {thing} on {place}" for thing in things for place in places]
    instructions += [
        template.replace("C", thing).replace("P", place)
        for template in TEMPLATES.strip().splitlines()
        for thing in OBJECTS.replace(",\n", ", ").strip().split(", ")
        for place in RECEPTACLES.replace(",\n", ", ").strip().split(", ")
    ]
    return [f"In: What action should the robot take to {instruction}?\nOut:" for instruction in instructions]


def write_tokenizer(path: Path) -> list[int]:
    """Train and write `tokenizer.json`; the result depends on nothing but this file.

    Returns:
        Every id the tokenizer can produce; action tokens (31744..31999) are not among them.
    """
    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    learner.pre_tokenizer = pre_tokenizers.Split(Regex("▁?[0-9A-Za-z]+"), "isolated")
    printable = [chr(code) for code in range(33, 127)] + ["▁"]
    trainer = trainers.BpeTrainer(vocab_size=1000, initial_alphabet=printable, show_progress=False)
    learner.train_from_iterator(sentences(), trainer)

    learned = json.loads(learner.to_str())["model"]
    merges = [tuple(pair) for pair in learned["merges"]]
    pieces = [first + second for first, second in merges]
    characters = sorted(set(learned["vocab"]) - set(pieces) - {"▁", "\n"})
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, "<PAD>": PAD, "▁": SPACE}
    vocabulary |= {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    vocabulary |= {piece: FIRST_PIECE + i for i, piece in enumerate(dict.fromkeys(pieces))}
    vocabulary |= {character: SPACE + 1 + i for i, character in enumerate(characters)}

    merges = [pair for pair in merges if "\n" not in pair[0] + pair[1]]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = learner.normalizer
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ("<unk>", "<s>", "</s>", "<PAD>")
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in special])
    tokenizer.save(str(path), pretty=False)
    return sorted(vocabulary.values())
