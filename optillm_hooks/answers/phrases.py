"""Phrases with which people state an answer, by language.

To add a language, add an entry to `LANGUAGES`. Words are alternatives of a regular expression,
separated by spaces; "_" stands for whitespace within a phrase. Case does not matter.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from optillm_hooks.answers.patterns import Pattern


@dataclass(frozen=True, slots=True)
class Language:
    """Phrases of one language."""

    answer: str
    """Nouns for "answer"."""

    result: str = ""
    """Nouns for "result", which can also name an intermediate step."""

    before: str = ""
    """Words before these nouns, as in "final answer"."""

    after: str = ""
    """Words after these nouns, as in "réponse finale"."""

    copula: str = ""
    """Verbs between such a noun and the answer: "is", "lautet"."""

    verbs: str = ""
    """Further verbs before a value in a conclusion: "has", "kostet"."""

    filler: str = ""
    """Words between a verb and a value: "about", "exactly"."""

    therefore: str = ""
    """Words that introduce a conclusion."""

    because: str = ""
    """Words that begin a reason or an aside after the answer."""

    conjunction: str = ""
    """Words between the values of a list."""

    option: str = ""
    """Nouns for a choice."""

    yes_no: str = ""
    """Words for yes, no, true and false."""

    negation: str = ""
    """Words for "not"."""

    common: str = ""
    """Frequent words, by which the language is recognised."""

    decimal_comma: bool = True


LANGUAGES = {
    "en": Language(
        answer="answers? ans",
        result="results? outputs? conclusion solutions? totals? final_value response",
        before="the final correct right best overall my short direct so thus therefore",
        copula="is are was would_be will_be must_be should_be equals comes_out_(?:to|as) comes_to "
        "becomes remains be",
        verbs="equal makes? gives? gets? got has have had total(?:s|l?ed)? costs? "
        "(?:it|that|he|she|"
        "there|what|answer)['\u2019]s needs? leaves takes? took pays? paid earns? earned "
        "evaluates_to "
        "simplifies_to equates_to amounts_to reduces_to returns? prints? outputs? yields contains "
        "obtain find holds? won sold saves? saved spent made ate read reads arrived? arrives "
        "starts? "
        "ends? "
        "lasts",
        filler="about approximately approx\\.? roughly around exactly only just nearly almost now "
        "therefore thus then still equal_to a_total_of at_least at_most at that it_is simply also "
        "currently an_average_of up_to",
        therefore="so thus hence therefore in_total altogether overall finally in_conclusion "
        "consequently accordingly",
        because="because since as which so_that where when while given_that due_to if assuming "
        "although but who whose making giving leaving after before for_example i\\.e\\. e\\.g\\.",
        conjunction="and or",
        option="options? choices? answers? statements? letters?",
        yes_no="yes no true false yeah nope",
        negation="not",
        common="the of is and to so that it for in has are answer",
        decimal_comma=False,
    ),
    "de": Language(
        answer="antwort antworten",
        result="ergebnis endergebnis resultat lösung gesamtergebnis ausgabe fazit",
        before="die das endgültige richtige korrekte finale abschließende meine",
        copula="ist lautet sind wäre beträgt ergibt war also_lautet",
        verbs="hat haben kostet kosten macht gibt bleiben erhält benötigt braucht dauert "
        "zahlt bezahlt",
        filler="etwa ungefähr ca\\.? rund genau nur insgesamt also somit damit noch dann",
        therefore="also somit daher folglich insgesamt damit deshalb",
        because="weil da denn sodass wobei aber wenn",
        conjunction="und oder",
        option="option antwort aussage möglichkeit buchstabe",
        yes_no="ja nein wahr falsch richtig",
        negation="nicht",
        common="der die das und ist nicht ein eine sie er also antwort ergebnis endergebnis "
        "insgesamt beträgt lautet sind lösung somit uhr am es im",
    ),
    "fr": Language(
        answer="réponses?",
        result="résultats? solutions? sortie conclusion",
        before="la le bonne ma",
        after="finale? correcte? exacte? est_donc",
        copula="est sont serait vaut est_donc est_de est_la",
        verbs="a ont coûte fait donne reste faut égale sera gagne paie paye possède",
        filler="environ exactement donc de à_peu_près seulement égale?_à encore au_total la",
        therefore="donc ainsi au_total en_conclusion par_conséquent finalement",
        because="car parce_que puisque qui où mais si",
        conjunction="et ou",
        option="option réponse choix proposition lettre",
        yes_no="oui non vrai faux",
        negation="pas non",
        common="le la les est une des donc il elle réponse résultat au de et que reste",
    ),
    "es": Language(
        answer="respuestas?",
        result="resultados? solución soluciones salida conclusión",
        before="la el mi",
        after="final correcta correcto",
        copula="es son sería está es_la",
        verbs="tiene tienen cuesta vale da quedan queda hay gana paga igual_a",
        filler="aproximadamente unos? unas exactamente sólo solo por_lo_tanto igual_a de "
        "en_total la",
        therefore="por_lo_tanto por_tanto así entonces en_total en_conclusión luego",
        because="porque ya_que pues que donde pero si",
        conjunction="y o",
        option="opción respuesta alternativa letra",
        yes_no="sí si no verdadero falso cierto",
        negation="no sino",
        common="el los las es una por que respuesta resultado en del tiene total la lo solución",
    ),
    "it": Language(
        answer="rispost[ae]",
        result="risultat[oi] soluzion[ei] conclusione",
        before="la il mia",
        after="finale corrett[ao] esatta giusta",
        copula="è sono sarebbe e'",
        verbs="ha hanno costa vale dà fa restano rimangono ci_sono guadagna paga",
        filler="circa esattamente solo quindi dunque uguale_a pari_a di in_totale la",
        therefore="quindi dunque perciò pertanto in_totale in_conclusione",
        because="perché poiché in_quanto che dove ma se",
        conjunction="e o oppure",
        option="opzione risposta alternativa lettera",
        yes_no="sì si no vero falso",
        negation="non",
        common="il è una di che quindi risposta risultato la sono del in gli totale ha",
    ),
    "pt": Language(
        answer="respostas?",
        result="resultados? solução soluções saída conclusão",
        before="a o minha",
        after="final correta correto certa",
        copula="é são seria é_a será",
        verbs="tem têm custa vale dá restam sobram há ganha paga",
        filler="aproximadamente cerca_de exatamente apenas portanto igual_a de no_total a",
        therefore="portanto logo então assim no_total em_conclusão",
        because="porque pois que onde mas se já_que",
        conjunction="e ou",
        option="opção alternativa resposta letra",
        yes_no="sim não verdadeiro falso",
        negation="não",
        common="o os as é um uma não portanto resposta resultado do da em no preço total",
    ),
    "nl": Language(
        answer="antwoord",
        result="resultaat uitkomst oplossing eindantwoord",
        before="het juiste correcte definitieve",
        copula="is luidt zijn",
        verbs="heeft kost",
        filler="ongeveer precies dus",
        therefore="dus daarom",
        because="omdat want",
        conjunction="en of",
        option="optie",
        yes_no="ja nee waar onwaar",
        negation="niet",
        common="het een en is dus antwoord van dat",
    ),
    "pl": Language(
        answer="odpowiedź",
        result="wynik rozwiązanie",
        before="poprawna prawidłowa ostateczna końcowa",
        after="końcowa ostateczna",
        copula="to brzmi jest wynosi",
        verbs="ma kosztuje",
        filler="około",
        therefore="więc zatem",
        because="ponieważ bo",
        conjunction="i lub",
        option="opcja",
        yes_no="tak nie prawda fałsz",
        negation="nie",
        common="i w na jest to odpowiedź wynik się że",
    ),
    "ru": Language(
        answer="ответ",
        result="результат итого",
        before="правильный окончательный верный итоговый",
        copula="это равен равна равно будет составляет",
        filler="примерно около",
        therefore="итак таким_образом следовательно значит",
        because="потому_что так_как",
        conjunction="и или",
        option="вариант",
        yes_no="да нет верно неверно",
        negation="не",
        common="и в на не что ответ равен это",
    ),
    "other": Language(
        answer="svaret svar cevap yanıt jawaban(?:nya)? đáp_án câu_trả_lời "
        "odpověď răspuns(?:ul)? válasz vastaus відповідь "
        "απάντηση الإجابة الجواب תשובה پاسخ",
        before="rätta rätt riktige rigtige doğru final ה",
        after="akhir final corect النهائية الصحيحة đúng cuối_cùng yang_benar",
        copula="är er adalah là este هي هو je on",
        yes_no="evet hayır ya tidak nej nei",
        common="är och svaret att adalah jawaban cevap",
    ),
}
"""Languages that put spaces between words; most write a decimal comma."""


def words(select: Callable[[Language], str]) -> str:
    """Return the alternatives of all languages, longest first, as a group without capture."""
    phrases = {word for language in LANGUAGES.values() for word in select(language).split()}
    ordered = sorted(phrases, key=lambda phrase: (-len(phrase), phrase))
    return "(?:" + "|".join(phrase.replace("_", r"[ \t\u00a0]") for phrase in ordered) + ")"


CJK_ANSWER = "答案|正确选项|正確選項|答え|答複|解答|回答|正解|정답|답변|답|उत्तर|คำตอบ"
CJK_RESULT = "结果|結果|結論|结论|合計|결과"
CJK_COPULA = "は|是|为|為|应为|應為|就是|应该是|应是|等于|选择?|은|는|가|이|है|คือ"
CJK_VERBS = "は|が|を|是|为|為|等于|等於|有|共|得|剩|要|需要?|即|约|約|成|了|은|는|가|이|총"
CJK_CHOOSE = "选项?|選項?|选择|選擇|选"
CJK_ENDS = "です|である|となります|になります|でした|だ|입니다|이다|예요|이에요|है"
CJK_YES_NO = "是的|不是|对|不对|正确|错误|はい|いいえ|네|아니요|예"

_COMMON = {
    name: Pattern(rf"(?<!\w)(?:{'|'.join(language.common.split())})(?!\w)", re.IGNORECASE)
    for name, language in LANGUAGES.items()
}
_MAX_SAMPLE = 4000


def has_decimal_comma(text: str) -> bool:
    """Return True if the language of `text` writes a decimal comma, as in 3,5."""
    counts = {name: len(common.findall(text[-_MAX_SAMPLE:])) for name, common in _COMMON.items()}
    best = max(counts, key=lambda name: counts[name])
    return counts[best] > counts["en"] and LANGUAGES[best].decimal_comma
