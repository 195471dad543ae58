"""Puzzles with a formalisation as a model would write it, and the same puzzle in plain Python.

The Python side knows nothing of solvers: it tries every case in a finite domain.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations, permutations, product

Value = int | bool | str
Rule = Callable[..., bool]
Cases = range | tuple[Value, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Puzzle:
    name: str
    script: str
    domain: Mapping[str, Cases]
    """The cases of each unknown, which the script's own bounds must equal or imply."""

    rule: Rule
    """Takes the unknowns by name; returns whether they solve the puzzle."""

    score: Callable[..., int] | None = None
    """The objective of an optimisation puzzle, minimised."""

    largest: bool = False
    """The objective is maximised instead."""

    facts: Mapping[str, Rule] = field(default_factory=dict[str, Rule])
    """For a contradiction: each named assertion in Python, so that a core can be checked."""

    def solutions(self, rule: Rule | None = None) -> Iterator[dict[str, Value]]:
        for case in product(*self.domain.values()):
            named = dict(zip(self.domain, case, strict=True))
            if (rule or self.rule)(**named):
                yield named

    def optimum(self) -> int | None:
        if self.score is None:
            return None
        scores = (self.score(*solution.values()) for solution in self.solutions())
        return max(scores) if self.largest else min(scores)


def ints(names: str, low: int, high: int) -> str:
    return "".join(
        f"(declare-const {name} Int)(assert (<= {low} {name} {high}))" for name in names.split()
    )


def bools(names: str) -> str:
    return "".join(f"(declare-const {name} Bool)" for name in names.split())


def cases(names: str, low: int, high: int) -> dict[str, Cases]:
    return dict.fromkeys(names.split(), range(low, high + 1))


def truths(names: str) -> dict[str, Cases]:
    return dict.fromkeys(names.split(), (False, True))


BITS = "(declare-const b (_ BitVec 8))"
BYTE: Mapping[str, Cases] = {"b": range(256)}

NUMBERS = [
    Puzzle(
        name="two numbers by their sum and product",
        script=ints("x y", 0, 60) + "(assert (= (+ x y) 17))(assert (= (* x y) 60))",
        domain=cases("x y", 0, 60),
        rule=lambda x, y: x + y == 17 and x * y == 60,
    ),
    Puzzle(
        name="a number four times the sum of its digits",
        script=ints("t", 1, 9) + ints("u", 0, 9) + "(assert (= (+ (* 10 t) u) (* 4 (+ t u))))",
        domain=cases("t", 1, 9) | cases("u", 0, 9),
        rule=lambda t, u: 10 * t + u == 4 * (t + u),
    ),
    Puzzle(
        name="a word sum: AB + BA = CAC",
        script=ints("A B C", 1, 9)
        + "(assert (distinct A B C))"
        + "(assert (= (+ (* 11 A) (* 11 B)) (+ (* 101 C) (* 10 A))))",
        domain=cases("A B C", 1, 9),
        rule=lambda A, B, C: len({A, B, C}) == 3 and 11 * A + 11 * B == 101 * C + 10 * A,  # noqa: N803
    ),
    Puzzle(
        name="a right triangle with perimeter 60",
        script=ints("a b c", 1, 40)
        + "(assert (< a b c))(assert (= (+ a b c) 60))"
        + "(assert (= (+ (* a a) (* b b)) (* c c)))",
        domain=cases("a b c", 1, 40),
        rule=lambda a, b, c: a < b < c and a + b + c == 60 and a * a + b * b == c * c,
    ),
    Puzzle(
        name="three neighbours whose squares sum to 365",
        script=ints("n", 0, 50) + "(assert (= 365 (+ (* n n) (* (+ n 1) (+ n 1))"
        " (* (+ n 2) (+ n 2)))))",
        domain=cases("n", 0, 50),
        rule=lambda n: n**2 + (n + 1) ** 2 + (n + 2) ** 2 == 365,
    ),
    Puzzle(
        name="ages now and in six years",
        script=ints("mother child", 0, 100)
        + "(assert (= mother (* 5 child)))(assert (= (+ mother 6) (* 3 (+ child 6))))",
        domain=cases("mother child", 0, 100),
        rule=lambda mother, child: mother == 5 * child and mother + 6 == 3 * (child + 6),
    ),
    Puzzle(
        name="remainders by 3, 5 and 7",
        script=ints("n", 1, 105)
        + "(assert (= (mod n 3) 2))(assert (= (mod n 5) 3))(assert (= (mod n 7) 2))",
        domain=cases("n", 1, 105),
        rule=lambda n: n % 3 == 2 and n % 5 == 3 and n % 7 == 2,
    ),
    Puzzle(
        name="three different unit fractions that make one",
        script=ints("a b c", 2, 12)
        + "(assert (< a b c))(assert (= (* a b c) (+ (* a b) (* b c) (* a c))))",
        domain=cases("a b c", 2, 12),
        rule=lambda a, b, c: a < b < c and a * b * c == a * b + b * c + a * c,
    ),
    Puzzle(
        name="1729 as a sum of two cubes",
        script=ints("x y", 1, 12)
        + "(assert (< x y))(assert (= 1729 (+ (* x x x) (* y y y))))(assert (> x 1))",
        domain=cases("x y", 1, 12),
        rule=lambda x, y: 1 < x < y and x**3 + y**3 == 1729,
    ),
    Puzzle(
        name="13 coins of 2 and 5 that make 41",
        script=ints("twos fives", 0, 20)
        + "(assert (= 13 (+ twos fives)))(assert (= 41 (+ (* 2 twos) (* 5 fives))))",
        domain=cases("twos fives", 0, 20),
        rule=lambda twos, fives: twos + fives == 13 and 2 * twos + 5 * fives == 41,
    ),
    Puzzle(
        name="a lock of three digits from its clues",
        script=ints("p q r", 0, 9)
        + "(assert (= (+ p q r) 14))(assert (= p (* 2 q)))(assert (> r p))",
        domain=cases("p q r", 0, 9),
        rule=lambda p, q, r: p + q + r == 14 and p == 2 * q and r > p,
    ),
    Puzzle(
        name="heads and legs",
        script=ints("hens goats", 0, 40)
        + "(assert (= 31 (+ hens goats)))(assert (= 88 (+ (* 2 hens) (* 4 goats))))",
        domain=cases("hens goats", 0, 40),
        rule=lambda hens, goats: hens + goats == 31 and 2 * hens + 4 * goats == 88,
    ),
]

UNITS = [
    Puzzle(
        name="hours, minutes and seconds of 7384 seconds",
        script=ints("h m s", 0, 59) + "(assert (= 7384 (+ (* 3600 h) (* 60 m) s)))",
        domain={"h": range(4), "m": range(60), "s": range(60)},
        rule=lambda h, m, s: 3600 * h + 60 * m + s == 7384,
    ),
    Puzzle(
        name="the whole Celsius degrees at which Fahrenheit is twice as much, below 200",
        script=ints("c f", 0, 400)
        + "(assert (= (* 5 (- f 32)) (* 9 c)))(assert (= f (* 2 c)))(assert (< c 200))",
        domain=cases("c f", 0, 400),
        rule=lambda c, f: 5 * (f - 32) == 9 * c and f == 2 * c and c < 200,
    ),
    Puzzle(
        name="feet and inches of 175 centimetres, to the nearest inch",
        script=ints("feet inches", 0, 11)
        + "(assert (<= (* 100 175) (+ 127 (* 254 (+ (* 12 feet) inches)))))"
        + "(assert (< (* 254 (+ (* 12 feet) inches)) (+ 127 (* 100 175))))",
        domain=cases("feet inches", 0, 11),
        rule=lambda feet, inches: (
            254 * (12 * feet + inches) + 127 >= 17500 and 254 * (12 * feet + inches) < 17500 + 127
        ),
    ),
    Puzzle(
        name="the speed in km/h at which 150 metres take 6 seconds",
        script=ints("v", 0, 300) + "(assert (= (* v 6 1000) (* 150 3600)))",
        domain=cases("v", 0, 300),
        rule=lambda v: v * 6 * 1000 == 150 * 3600,
    ),
    Puzzle(
        name="six litres from jugs of 4 and 9 litres, filled and emptied as few times as can be",
        script="(declare-const fours Int)(declare-const nines Int)"
        + "(assert (<= (- 10) fours 10))(assert (<= (- 10) nines 10))"
        + "(assert (= 6 (+ (* 4 fours) (* 9 nines))))"
        + "(minimize (+ (ite (< fours 0) (- fours) fours) (ite (< nines 0) (- nines) nines)))",
        domain=cases("fours nines", -10, 10),
        rule=lambda fours, nines: 4 * fours + 9 * nines == 6,
        score=lambda fours, nines: abs(fours) + abs(nines),
    ),
    Puzzle(
        name="no whole number of inches is a whole number of metres below 100 inches",
        script=ints("inches metres", 1, 100) + "(assert (= (* 254 inches) (* 10000 metres)))",
        domain=cases("inches metres", 1, 100),
        rule=lambda inches, metres: 254 * inches == 10000 * metres,
    ),
]

KNIGHTS = [
    Puzzle(
        name="a says that b is a knave, b that they are alike",
        script=bools("a b") + "(assert (= a (not b)))(assert (= b (= a b)))",
        domain=truths("a b"),
        rule=lambda a, b: a == (not b) and b == (a == b),
    ),
    Puzzle(
        name="a says that both are knaves",
        script=bools("a b") + "(assert (= a (and (not a) (not b))))",
        domain=truths("a b"),
        rule=lambda a, b: a == (not a and not b),
    ),
    Puzzle(
        name="a says that he is a knave",
        script=bools("a") + "(assert (= a (not a)))",
        domain=truths("a"),
        rule=lambda a: a == (not a),
    ),
    Puzzle(
        name="each of three accuses the next",
        script=bools("a b c")
        + "(assert (= a (not b)))(assert (= b (not c)))(assert (= c (not a)))",
        domain=truths("a b c"),
        rule=lambda a, b, c: a == (not b) and b == (not c) and c == (not a),
    ),
    Puzzle(
        name="each of four accuses the next",
        script=bools("a b c d")
        + "(assert (= a (not b)))(assert (= b (not c)))(assert (= c (not d)))"
        + "(assert (= d (not a)))",
        domain=truths("a b c d"),
        rule=lambda a, b, c, d: a != b and b != c and c != d and d != a,
    ),
    Puzzle(
        name="all three say that exactly one of them is a knight",
        script=bools("a b c")
        + "(define-fun one () Bool ((_ pbeq 1 1 1 1) a b c))"
        + "(assert (= a one))(assert (= b one))(assert (= c one))",
        domain=truths("a b c"),
        rule=lambda a, b, c: all(x == (a + b + c == 1) for x in (a, b, c)),
    ),
    Puzzle(
        name="a says at most one knave, b says c is one, c says a and b differ",
        script=bools("a b c")
        + "(assert (= a ((_ at-most 1) (not a) (not b) (not c))))"
        + "(assert (= b (not c)))(assert (= c (xor a b)))",
        domain=truths("a b c"),
        rule=lambda a, b, c: a == (a + b + c >= 2) and b == (not c) and c == (a != b),
    ),
    Puzzle(
        name="if a is a knight then so is b, says a; b says that c is a knave",
        script=bools("a b c") + "(assert (= a (=> a b)))(assert (= b (not c)))",
        domain=truths("a b c"),
        rule=lambda a, b, c: a == (not a or b) and b == (not c),
    ),
    Puzzle(
        name="five people, and k of them say that there are k knaves",
        script=bools("a b c d e")
        + ints("knaves", 0, 5)
        + "(assert (= knaves (+ (ite a 0 1) (ite b 0 1) (ite c 0 1) (ite d 0 1) (ite e 0 1))))"
        + "(assert (= a (= knaves 1)))(assert (= b (= knaves 2)))(assert (= c (= knaves 3)))"
        + "(assert (= d (= knaves 4)))(assert (= e (= knaves 5)))",
        domain=truths("a b c d e") | cases("knaves", 0, 5),
        rule=lambda a, b, c, d, e, knaves: (
            knaves == 5 - (a + b + c + d + e)
            and all(x == (knaves == k) for k, x in enumerate((a, b, c, d, e), start=1))
        ),
    ),
    Puzzle(
        name="one thief among three, and only the thief lies",
        script=ints("thief", 1, 3)
        + "(assert (= (not (= thief 1)) (= thief 2)))"
        + "(assert (= (not (= thief 2)) (not (= thief 2))))"
        + "(assert (= (not (= thief 3)) (not (= thief 1))))",
        domain=cases("thief", 1, 3),
        rule=lambda thief: (
            (thief != 1) == (thief == 2)
            and (thief != 2) == (thief != 2)
            and (thief != 3) == (thief != 1)
        ),
    ),
]


def apart(*jobs: tuple[int, int]) -> bool:
    """Return whether no two jobs overlap, each given as its start and length."""
    return all(a + m <= b or b + n <= a for (a, m), (b, n) in combinations(jobs, 2))


def no_overlap(a: str, m: int, b: str, n: int) -> str:
    return f"(assert (or (<= (+ {a} {m}) {b}) (<= (+ {b} {n}) {a})))"


SCHEDULES = [
    Puzzle(
        name="three jobs on one machine, the second before the first",
        script=ints("a b c", 0, 5)
        + no_overlap("a", 3, "b", 2)
        + no_overlap("a", 3, "c", 1)
        + no_overlap("b", 2, "c", 1)
        + "(assert (<= (+ b 2) a))(assert (<= (+ a 3) 6))(assert (<= (+ b 2) 6))"
        + "(assert (<= (+ c 1) 6))",
        domain=cases("a b c", 0, 5),
        rule=lambda a, b, c: (
            apart((a, 3), (b, 2), (c, 1)) and b + 2 <= a and max(a + 3, b + 2, c + 1) <= 6
        ),
    ),
    Puzzle(
        name="seven hours of work do not fit in six",
        script=ints("a b c", 0, 6)
        + no_overlap("a", 3, "b", 2)
        + no_overlap("a", 3, "c", 2)
        + no_overlap("b", 2, "c", 2)
        + "(assert (<= (+ a 3) 6))(assert (<= (+ b 2) 6))(assert (<= (+ c 2) 6))",
        domain=cases("a b c", 0, 6),
        rule=lambda a, b, c: apart((a, 3), (b, 2), (c, 2)) and max(a + 3, b + 2, c + 2) <= 6,
    ),
    Puzzle(
        name="the shortest time for a chain beside a long job",
        script=ints("a b c", 0, 12)
        + ints("end", 0, 12)
        + "(assert (<= (+ a 4) b))(assert (<= (+ b 3) end))(assert (<= (+ c 5) end))"
        + "(assert (>= c 1))(minimize end)",
        domain=cases("a b c end", 0, 12),
        rule=lambda a, b, c, end: a + 4 <= b and b + 3 <= end and c + 5 <= end and c >= 1,
        score=lambda *job: int(job[-1]),
    ),
    Puzzle(
        name="four talks in three slots, two speakers in two talks each",
        script=ints("w x y z", 1, 3)
        + "(assert (distinct w x))(assert (distinct y z))(assert (distinct w z))"
        + "(assert (= x y))",
        domain=cases("w x y z", 1, 3),
        rule=lambda w, x, y, z: w != x and y != z and w != z and x == y,
    ),
    Puzzle(
        name="a seating of five with neighbours and ends",
        script=ints("ann bob cat dan eve", 1, 5)
        + "(assert (distinct ann bob cat dan eve))(assert (= 1 (abs (- ann bob))))"
        + "(assert (not (= 1 (abs (- cat dan)))))(assert (= eve 3))(assert (< ann cat))",
        domain=cases("ann bob cat dan eve", 1, 5),
        rule=lambda ann, bob, cat, dan, eve: (
            len({ann, bob, cat, dan, eve}) == 5
            and abs(ann - bob) == 1
            and abs(cat - dan) != 1
            and eve == 3
            and ann < cat
        ),
    ),
    Puzzle(
        name="a rota in which nobody works twice in a row and one is away on the third day",
        script=ints("d1 d2 d3 d4", 1, 3)
        + "(assert (distinct d1 d2))(assert (distinct d2 d3))(assert (distinct d3 d4))"
        + "(assert (not (= d3 2)))(assert (= d1 d4))(assert (not (= d2 3)))",
        domain=cases("d1 d2 d3 d4", 1, 3),
        rule=lambda d1, d2, d3, d4: (
            d1 != d2 and d2 != d3 and d3 != d4 and d3 != 2 and d1 == d4 and d2 != 3
        ),
    ),
    Puzzle(
        name="a meeting that everybody can attend",
        script=ints("start", 9, 17)
        + "(assert (or (<= (+ start 2) 12) (>= start 13)))"
        + "(assert (>= start 10))(assert (or (<= (+ start 2) 11) (>= start 12)))"
        + "(assert (<= (+ start 2) 16))",
        domain=cases("start", 9, 17),
        rule=lambda start: (
            (start + 2 <= 12 or start >= 13)
            and start >= 10
            and (start + 2 <= 11 or start >= 12)
            and start + 2 <= 16
        ),
    ),
]

OPTIMA = [
    Puzzle(
        name="a knapsack of five things",
        script=bools("a b c d e")
        + "(assert (<= (+ (ite a 5 0) (ite b 4 0) (ite c 6 0) (ite d 3 0) (ite e 2 0)) 10))"
        + "(maximize (+ (ite a 10 0) (ite b 40 0) (ite c 30 0) (ite d 50 0) (ite e 9 0)))",
        domain=truths("a b c d e"),
        rule=lambda a, b, c, d, e: 5 * a + 4 * b + 6 * c + 3 * d + 2 * e <= 10,
        score=lambda a, b, c, d, e: 10 * a + 40 * b + 30 * c + 50 * d + 9 * e,
        largest=True,
    ),
    Puzzle(
        name="the fewest coins of 1, 7 and 10 for 23",
        script=ints("ones sevens tens", 0, 23)
        + "(assert (= 23 (+ ones (* 7 sevens) (* 10 tens))))(minimize (+ ones sevens tens))",
        domain=cases("ones sevens tens", 0, 23),
        rule=lambda ones, sevens, tens: ones + 7 * sevens + 10 * tens == 23,
        score=lambda ones, sevens, tens: ones + sevens + tens,
    ),
    Puzzle(
        name="the largest field with a fence of 25",
        script=ints("w h", 1, 25) + "(assert (<= (+ (* 2 w) h) 25))(maximize (* w h))",
        domain=cases("w h", 1, 25),
        rule=lambda w, h: 2 * w + h <= 25,
        score=lambda w, h: w * h,
        largest=True,
    ),
    Puzzle(
        name="profit from two products and two machines",
        script=ints("x y", 0, 30)
        + "(assert (<= (+ (* 2 x) y) 20))(assert (<= (+ x (* 3 y)) 30))"
        + "(maximize (+ (* 3 x) (* 4 y)))",
        domain=cases("x y", 0, 30),
        rule=lambda x, y: 2 * x + y <= 20 and x + 3 * y <= 30,
        score=lambda x, y: 3 * x + 4 * y,
        largest=True,
    ),
    Puzzle(
        name="the cheapest assignment of three workers",
        script=ints("p q r", 0, 2)
        + "(assert (distinct p q r))"
        + "(minimize (+ (ite (= p 0) 9 (ite (= p 1) 2 7)) (ite (= q 0) 6 (ite (= q 1) 4 3))"
        + " (ite (= r 0) 5 (ite (= r 1) 8 1))))",
        domain=cases("p q r", 0, 2),
        rule=lambda p, q, r: len({p, q, r}) == 3,
        score=lambda p, q, r: [9, 2, 7][p] + [6, 4, 3][q] + [5, 8, 1][r],
    ),
    Puzzle(
        name="the smallest number with these remainders",
        script=ints("n", 0, 400)
        + "(assert (= 1 (mod n 4)))(assert (= 4 (mod n 9)))(assert (= 2 (mod n 5)))(minimize n)",
        domain=cases("n", 0, 400),
        rule=lambda n: n % 4 == 1 and n % 9 == 4 and n % 5 == 2,
        score=int,
    ),
    Puzzle(
        name="the fewest wishes refused",
        script=bools("a b c")
        + "(declare-const refused Int)(assert (or (not a) (not b)))(assert (or (not b) (not c)))"
        + "(assert (= refused (+ (ite a 0 1) (ite b 0 1) (ite c 0 1))))(minimize refused)",
        domain=truths("a b c") | cases("refused", 0, 3),
        rule=lambda a, b, c, refused: (
            not (a and b) and not (b and c) and refused == 3 - (a + b + c)
        ),
        score=lambda *wishes: int(wishes[-1]),
    ),
    Puzzle(
        name="the fewest guards of a ring of six",
        script=ints("g0 g1 g2 g3 g4 g5", 0, 1)
        + "".join(f"(assert (>= (+ g{(i - 1) % 6} g{i} g{(i + 1) % 6}) 1))" for i in range(6))
        + "(minimize (+ g0 g1 g2 g3 g4 g5))",
        domain=cases("g0 g1 g2 g3 g4 g5", 0, 1),
        rule=lambda **g: all(
            g[f"g{(i - 1) % 6}"] + g[f"g{i}"] + g[f"g{(i + 1) % 6}"] >= 1 for i in range(6)
        ),
        score=lambda *guards: sum(guards),
    ),
]

CONTRADICTIONS = [
    Puzzle(
        name="three pigeons in two holes",
        script=ints("p q r", 1, 2)
        + "(assert (! (not (= p q)) :named pq))(assert (! (not (= q r)) :named qr))"
        + "(assert (! (not (= p r)) :named pr))(assert (! (>= p 1) :named idle))",
        domain=cases("p q r", 1, 2),
        rule=lambda p, q, r: len({p, q, r}) == 3,
        facts={
            "pq": lambda p, q, **_: p != q,
            "qr": lambda q, r, **_: q != r,
            "pr": lambda p, r, **_: p != r,
            "idle": lambda p, **_: p >= 1,
        },
    ),
    Puzzle(
        name="three people each older than the next, in a ring",
        script=ints("a b c", 0, 9)
        + "(assert (! (> a b) :named ab))(assert (! (> b c) :named bc))"
        + "(assert (! (> c a) :named ca))(assert (! (> a 3) :named grown))",
        domain=cases("a b c", 0, 9),
        rule=lambda a, b, c: a > b > c > a,
        facts={
            "ab": lambda a, b, **_: a > b,
            "bc": lambda b, c, **_: b > c,
            "ca": lambda a, c, **_: c > a,
            "grown": lambda a, **_: a > 3,
        },
    ),
    Puzzle(
        name="an even sum of an even and an odd number",
        script=ints("m n", 0, 20)
        + "(assert (! (= 0 (mod m 2)) :named even_m))(assert (! (= 1 (mod n 2)) :named odd_n))"
        + "(assert (! (= 0 (mod (+ m n) 2)) :named even_sum))(assert (! (> m n) :named order))",
        domain=cases("m n", 0, 20),
        rule=lambda m, n: m % 2 == 0 and n % 2 == 1 and (m + n) % 2 == 0 and m > n,
        facts={
            "even_m": lambda m, **_: m % 2 == 0,
            "odd_n": lambda n, **_: n % 2 == 1,
            "even_sum": lambda m, n: (m + n) % 2 == 0,
            "order": lambda m, n: m > n,
        },
    ),
    Puzzle(
        name="a budget that cannot hold",
        script=ints("food rent", 0, 100)
        + "(assert (! (>= food 40) :named eat))(assert (! (>= rent 65) :named live))"
        + "(assert (! (<= (+ food rent) 100) :named pay))(assert (! (<= rent 90) :named cap))",
        domain=cases("food rent", 0, 100),
        rule=lambda food, rent: food >= 40 and rent >= 65 and food + rent <= 100,
        facts={
            "eat": lambda food, **_: food >= 40,
            "live": lambda rent, **_: rent >= 65,
            "pay": lambda food, rent: food + rent <= 100,
            "cap": lambda rent, **_: rent <= 90,
        },
    ),
    Puzzle(
        name="two testimonies that exclude each other",
        script=bools("home out rain")
        + "(assert (! (=> rain home) :named habit))(assert (! rain :named weather))"
        + "(assert (! out :named seen))(assert (! (not (and home out)) :named either))",
        domain=truths("home out rain"),
        rule=lambda home, out, rain: (not rain or home) and rain and out and not (home and out),
        facts={
            "habit": lambda home, rain, **_: not rain or home,
            "weather": lambda rain, **_: rain,
            "seen": lambda out, **_: out,
            "either": lambda home, out, **_: not (home and out),
        },
    ),
    Puzzle(
        name="an odd ring with two colours",
        script=ints("u v w x", 0, 1)
        + "(assert (! (distinct u v) :named uv))(assert (! (distinct v w) :named vw))"
        + "(assert (! (distinct w u) :named wu))(assert (! (distinct w x) :named wx))",
        domain=cases("u v w x", 0, 1),
        rule=lambda u, v, w, x: u != v and v != w and w != u and w != x,
        facts={
            "uv": lambda u, v, **_: u != v,
            "vw": lambda v, w, **_: v != w,
            "wu": lambda w, u, **_: w != u,
            "wx": lambda w, x, **_: w != x,
        },
    ),
]

BIT_VECTORS = [
    Puzzle(
        name="a byte whose double wraps to 36",
        script=BITS + "(assert (= (bvadd b b) #x24))(assert (bvuge b #x80))",
        domain=BYTE,
        rule=lambda b: (2 * b) % 256 == 0x24 and b >= 0x80,
    ),
    Puzzle(
        name="a byte that differs from its shift in every bit of a mask",
        script=BITS + "(assert (= (bvand (bvxor b (bvshl b #x01)) #xaa) #xaa))"
        "(assert (= (bvand b #x01) #x01))",
        domain=BYTE,
        rule=lambda b: (b ^ (b << 1)) & 0xAA == 0xAA and b & 1 == 1,
    ),
    Puzzle(
        name="an odd square that ends in 0x51",
        script=BITS + "(assert (= (bvmul b b) #x51))(assert (bvult b #x40))",
        domain=BYTE,
        rule=lambda b: b * b % 256 == 0x51 and b < 0x40,
    ),
    Puzzle(
        name="no byte is its own successor",
        script=BITS + "(assert (= b (bvadd b #x01)))",
        domain=BYTE,
        rule=lambda b: b == (b + 1) % 256,
    ),
    Puzzle(
        name="the smallest byte with three bits that 7 divides",
        script=BITS
        + "(assert (= (bvurem b #x07) #x00))(assert (not (= b #x00)))"
        + "(assert (= 3 (+ "
        + " ".join(f"(ite (= ((_ extract {i} {i}) b) #b1) 1 0)" for i in range(8))
        + ")))(minimize b)",
        domain=BYTE,
        rule=lambda b: b % 7 == 0 and b != 0 and bin(b).count("1") == 3,
        score=int,
    ),
]

WORDS = ("".join(w) for n in range(5) for w in product("ab", repeat=n))
STRINGS = [
    Puzzle(
        name="a word of four letters that reads the same backwards and holds bb",
        script="(declare-const s String)(assert (= 4 (str.len s)))"
        '(assert (str.in_re s (re.* (re.union (str.to_re "a") (str.to_re "b")))))'
        "(assert (= (str.at s 0) (str.at s 3)))(assert (= (str.at s 1) (str.at s 2)))"
        '(assert (str.contains s "bb"))(assert (str.prefixof "a" s))',
        domain={"s": tuple(WORDS)},
        rule=lambda s: len(s) == 4 and s == s[::-1] and "bb" in s and s.startswith("a"),
    ),
    Puzzle(
        name="a word that ab makes baab",
        script='(declare-const s String)(assert (= (str.++ s "ab") "baab"))',
        domain={"s": tuple("".join(w) for n in range(3) for w in product("ab", repeat=n))},
        rule=lambda s: s + "ab" == "baab",
    ),
    Puzzle(
        name="no word starts with its own extension",
        script="(declare-const s String)(assert (<= (str.len s) 3))"
        '(assert (str.prefixof (str.++ s "a") s))',
        domain={"s": tuple("".join(w) for n in range(4) for w in product("ab", repeat=n))},
        rule=lambda s: s.startswith(s + "a"),
    ),
    Puzzle(
        name="a number as text",
        script=ints("n", 0, 99)
        + '(assert (= (str.++ "1" (str.from_int n)) (str.from_int (+ n 100))))'
        "(assert (= 0 (mod n 37)))(assert (> n 10))",
        domain=cases("n", 0, 99),
        rule=lambda n: f"1{n}" == str(n + 100) and n % 37 == 0 and n > 10,
    ),
]

GRAPHS = [
    Puzzle(
        name="four colours are one too few for five who all border each other",
        script=ints("a b c d e", 1, 4) + "(assert (distinct a b c d e))",
        domain=cases("a b c d e", 1, 4),
        rule=lambda a, b, c, d, e: len({a, b, c, d, e}) == 5,
    ),
    Puzzle(
        name="three colours for a wheel of four spokes",
        script=ints("hub n e s w", 1, 3)
        + "(assert (distinct n e))(assert (distinct e s))(assert (distinct s w))"
        + "(assert (distinct w n))"
        + "".join(f"(assert (distinct hub {x}))" for x in "nesw"),
        domain=cases("hub n e s w", 1, 3),
        rule=lambda hub, n, e, s, w: (
            n != e and e != s and s != w and w != n and hub not in (n, e, s, w)
        ),
    ),
    Puzzle(
        name="three queens on a small board",
        script=ints("q0 q1 q2", 0, 2)
        + "(assert (distinct q0 q1 q2))(assert (distinct (+ q0 0) (+ q1 1) (+ q2 2)))"
        + "(assert (distinct (- q0 0) (- q1 1) (- q2 2)))",
        domain=cases("q0 q1 q2", 0, 2),
        rule=lambda q0, q1, q2: any(
            (q0, q1, q2) == p
            and len({p[i] + i for i in range(3)}) == 3
            and len({p[i] - i for i in range(3)}) == 3
            for p in permutations(range(3))
        ),
    ),
    Puzzle(
        name="four queens on a board of four",
        script=ints("q0 q1 q2 q3", 0, 3)
        + "(assert (distinct q0 q1 q2 q3))"
        + "(assert (distinct q0 (+ q1 1) (+ q2 2) (+ q3 3)))"
        + "(assert (distinct q0 (- q1 1) (- q2 2) (- q3 3)))",
        domain=cases("q0 q1 q2 q3", 0, 3),
        rule=lambda **q: (
            len(set(q.values())) == 4
            and len({v + i for i, v in enumerate(q.values())}) == 4
            and len({v - i for i, v in enumerate(q.values())}) == 4
        ),
    ),
]

PUZZLES = [
    *NUMBERS,
    *UNITS,
    *KNIGHTS,
    *SCHEDULES,
    *OPTIMA,
    *CONTRADICTIONS,
    *BIT_VECTORS,
    *STRINGS,
    *GRAPHS,
]
