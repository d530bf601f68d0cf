"""Texts of many kinds, on which a model's states are sampled."""

import copy
from typing import Protocol

from polyvec.embed.inputs.prompts import render
from polyvec.embed.inputs.tokens import TextTokenizer, TokenBatch
from polyvec.interfaces import Prompt

LONGEST = 128  # tokens of a text
SAMPLE = (
    "",
    "?",
    "no",
    "weather tomorrow",
    "how do I reset my password",
    "cheap flights from Lisbon to Oslo in May",
    "What is the capital of Mongolia?",
    "Who wrote the first novel about a voyage to the Moon, and in which year?",
    "The cat slept on the warm stones until the rain began.",
    "She had never seen the sea before, and now it filled the whole window.",
    '"I don\'t think so," he said; "nobody has lived there for years."',
    "The committee will publish its report on housing costs at the end of the month.",
    "Shares fell 3.7% on Tuesday after the company cut its forecast for 2019 to $1.2 billion.",
    "United won 2-1 away from home with a goal in the ninety-third minute.",
    "The enzyme binds two zinc ions and is inhibited by EDTA at concentrations above 5 mM.",
    "In a trial of 412 patients, the drug lowered blood pressure by 6.3 mmHg (p < 0.01).",
    "Galaxies recede from each other at speeds proportional to their distance.",
    "Let f be a continuous function on [0, 1]; then f attains its maximum.",
    "The tenant shall pay the rent on the first day of each month, without deduction or set-off.",
    "Add the flour, a pinch of salt and 200 ml of milk, and stir until the batter is smooth.",
    "The battery lasts two days, but the screen scratches easily. Three stars out of five.",
    "worst hotel EVER!!! the room smelled, the staff was rude, never again",
    "lol that's soooo true 😂😂 @friend #monday",
    "Turn left at the church, walk for five minutes, and you will see the museum on your right.",
    "The bridge, built in 1894 and widened twice, carries forty thousand vehicles a day.",
    "Bees communicate the direction of flowers by the angle of a dance.",
    "To install the package, run the command below and restart the server.",
    "TypeError: unsupported operand type(s) for +: 'int' and 'str'",
    "def mean(values):\n    return sum(values) / len(values)",
    "SELECT name, COUNT(*) FROM orders WHERE total > 100 GROUP BY name ORDER BY 2 DESC;",
    "for (int i = 0; i < n; i++) { a[i] += b[i] * 0.5f; }",
    '{"id": 17, "tags": ["red", "blue"], "price": 9.99, "stock": null}',
    "https://example.org/articles/2021/07/index.html?page=2&sort=asc",
    "info@example.com, +44 20 7946 0018, 12 High Street, SW1A 1AA",
    "ISBN 978-3-16-148410-0 | 2,048 pages | 1.35 kg",
    "1 2 3 4 5 6 7 8 9 10 100 1000 10000",
    "ACGTTGCAACGGTTACGATC MKTAYIAKQRQISFVKSHFSRQ",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "the the the the the the the the",
    "* * * --- === ### ~~~ ((( ))) [[ ]] << >>",
    "∑ α_i x_i ≤ √(β² + γ²) ⇒ x ∈ ℝ, π ≈ 3.14159",
    "Der Zug nach München fährt heute wegen einer Störung zwanzig Minuten später ab.",
    "Le marché ouvre à huit heures et ferme juste avant midi, même en été.",
    "El niño preguntó cuántas estrellas había en el cielo aquella noche.",
    "O comboio atravessou a ponte devagar enquanto o sol se punha.",
    "Il bambino corse fuori per vedere la prima neve dell'inverno.",
    "Wczoraj wieczorem zgasło światło w całej dzielnicy.",
    "Kitap okumayı seven çocuklar her hafta kütüphaneye gider.",
    "Вчера вечером мы долго гуляли по набережной и говорили о книгах.",
    "Το καράβι έφυγε από το λιμάνι πριν από την ανατολή του ήλιου.",
    "ذهب الأولاد إلى المدرسة في الصباح الباكر.",
    "הספר החדש מונח על השולחן ליד החלון.",
    "बच्चे आज सुबह पार्क में खेल रहे हैं।",
    "今天早上我们在河边看到了一只白色的鸟。",
    "駅前の小さな店で新しい本を買いました。",
    "오늘 아침에 비가 와서 버스가 늦게 도착했습니다.",
    "Con tàu rời bến lúc bình minh.",
    "เด็ก ๆ กำลังเล่นอยู่ริมแม่น้ำ",
    "The old lighthouse keeper kept a diary for thirty-one years. Most entries are about the "
    "weather: wind from the west, fog until noon, a clear night. But every few pages there is a "
    "line about a ship, its name and the flag it carried, and once, in the spring of the last "
    "year, a drawing of a whale that had come so close to the rocks that he could count the "
    "barnacles on its back. After his death the notebooks went to the harbour office, where they "
    "were used to settle an argument about the height of a storm surge.",
)


class Sized(Protocol):
    """What the sample asks of a Backbone."""

    @property
    def num_rows(self) -> int | None: ...
    @property
    def max_positions(self) -> int | None: ...


def sample_batch(tokenizer: TextTokenizer, backbone: Sized) -> TokenBatch | None:
    """The tokens of SAMPLE; None if the model has no embedding for one of them.

    Texts are cut at the model's positions, not at `max_seq_length`, which may change later.
    """
    tokenizer = copy.copy(tokenizer)
    tokenizer.max_length = min(LONGEST, backbone.max_positions or LONGEST)
    found = tokenizer.encode([render(text, Prompt()) for text in SAMPLE])
    tokens = [each for each in found if len(each)]  # some tokenizers give "" none
    if not tokens:
        return None
    batch = TokenBatch.of(range(len(tokens)), tokens)
    rows = backbone.num_rows
    return batch if rows is None or batch.ids_T.max() < rows else None
