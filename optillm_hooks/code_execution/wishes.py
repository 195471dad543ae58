"""Finds out whether a request asks for its code to be run: words of many languages, as words."""

import re
from collections.abc import Sequence
from itertools import islice
from typing import Final

from optillm_hooks.answers.code_blocks import code_blocks
from optillm_hooks.code_execution.public_tests import MAX_CHARACTERS, is_python

MAX_PROGRAMS: Final = 16
"""Maximum number of a request's code blocks that are run."""

_MAX_WISH: Final = 4000
"""Characters before and after the code that are searched for the wish to run it."""

_WISH: Final = re.compile(
    r"""\b(?:
      run|runs|running|execute|executes|executed|execution|evaluate|output|outputs|prints?|results?
    | ausführen|ausgeführt|führe|ausgabe|ergebnis|laufen
    | exécute[rz]?|exécution|lance[rz]?|sortie|affiche|résultat
    | ejecut(?:a|ar|e|o|es)|corre|salida|imprime|resultado
    | execut(?:a|ar|e|o)|rod(?:a|ar|e)|saída
    | esegui|eseguire|esegua|stampa|risultato
    | voer|uitvoeren|uitvoer|resultaat
    | uruchom|wykonaj|wynik
    | çalıştır|çıktı|sonuç
    | выполни|выполните|запусти|запустите|вывод|выведет|результат
    | виконай|запусти|результат
    )\b
    | 运行|執行|执行|运算结果|输出|輸出|実行|出力|실행|출력|شغّل|نفّذ|चलाओ|चलाएँ""",
    re.IGNORECASE | re.VERBOSE,
)
_NOT: Final = re.compile(
    r"""(?:\b(?:not|don[’']?t|never|without|nicht|ohne|pas|sans|no|sin|não|sem|non|senza|niet
    |zonder|nie|не|без)\b|不要|别|不)\s{0,3}(?:\w{1,20}\s{1,3})?
    (?:run|running|execut\w{0,5}|ausführ\w{0,4}|exécut\w{0,5}|lance\w?|ejecut\w{0,4}|esegu\w{0,4}
    |uitvoer\w{0,3}|выполня\w{0,4}|запуска\w{0,4}|运行|执行)""",
    re.IGNORECASE | re.VERBOSE,
)


def read_programs(request: str) -> Sequence[str]:
    """Return the Python code blocks of a request's text that asks for them to be run, in order.

    Of a text longer than `MAX_CHARACTERS`, the end is searched.
    """
    request = request[-MAX_CHARACTERS:]
    if not wants_run(request):
        return []
    programs = (block.content for block in code_blocks(request) if is_python(block))
    return list(islice(programs, MAX_PROGRAMS))


def wants_run(text: str) -> bool:
    """Return whether a request's words, its code left out, ask for the code to be run."""
    begin = 0
    words: list[str] = []
    for block in code_blocks(text):
        words.append(text[begin : block.start])
        begin = block.start + len(block.content)
    words.append(text[begin:])
    said = " ".join(words)
    said = f"{said[:_MAX_WISH]} {said[-_MAX_WISH:]}" if len(said) > 2 * _MAX_WISH else said
    return bool(_WISH.search(_NOT.sub(" ", said)))
