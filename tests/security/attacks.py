"""What an attacker may write or send: templates and conditions that reach for Python, or for all the memory there is."""

# ruff: noqa: E501 - a row of a table stays on its line

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

SECRET = "flat-secret-7f3a"


class Bait:
    """An object that should never be in a scope, with all that an attacker hopes for."""

    secret = SECRET

    def __init__(self) -> None:
        self.fired = False

    def run(self, *args: Any) -> str:
        self.fired = True
        return SECRET

    __call__ = run

    def __repr__(self) -> str:
        return "bait"


_STARTS = ("''", "[]", "{}", "()", "1", "1.5", "true", "none", "context", "context.s", "context.l", "context.d", "range",
           "dict", "context.bait", "context.b", "context.set", "context.bait.run", "input", "(1).real",
           "''.join",
           "context.l.append", "context.d.items", "''.format", "''|string", "[]|list")  # fmt: skip
_WALKS = (".__class__", "['__class__']", ".__class__.__mro__[1].__subclasses__()", "|attr('__class__')",
          "|map(attribute='__class__')|list", ".__init__.__globals__['os'].popen('id').read()",
          ".__class__.__base__.__subclasses__()[40]('/etc/passwd').read()", ".__doc__", ".__dir__()",
          ".mro()")  # fmt: skip

_WALKED = tuple(f"{{{{ {start}{walk} }}}}" for start in _STARTS for walk in _WALKS)
_OTHER = (
    "{{ self }}", "{{ self.__init__.__globals__ }}", "{{ self._TemplateReference__context }}",
    "{{ self._TemplateReference__context.cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}", "{{ joiner.__init__.__globals__.os }}",
    "{{ namespace.__init__.__globals__.os }}", "{{ lipsum.__globals__.os.popen('id').read() }}",
    "{{ lipsum.__globals__['os'] }}", "{{ lipsum() }}", "{{ cycler('a') }}", "{{ joiner() }}",
    "{{ namespace() }}",
    "{{ url_for.__globals__ }}", "{{ get_flashed_messages.__globals__ }}", "{{ config }}", "{{ request }}",
    "{{ ''['__cla' ~ 'ss__'] }}", "{{ ''['\\x5f\\x5fclass\\x5f\\x5f'] }}", "{{ context['__class__'] }}",
    "{{ context.s.format(context) }}", "{{ '{0.__class__}'.format(1) }}",
    "{{ '{0.__class__}'.format_map({}) }}",
    "{{ '{x.secret}'.format_map({'x': context.bait}) }}", "{{ '%(a)s'.__mod__ }}",
    "{{ context.bait.secret }}",
    "{{ context.bait['secret'] }}", "{{ context.bait.run() }}", "{{ context.bait() }}",
    "{{ (context.bait.run)() }}",
    "{{ [context.bait] | map('run') | list }}", "{{ [context.bait] | map(attribute='secret') | list }}",
    "{{ [context.bait] | map(attribute='run') | first }}",
    "{{ [context.bait] | selectattr('secret') | list }}",
    "{{ [context.bait] | groupby('secret') }}", "{{ [context.bait] | sort(attribute='secret') }}",
    "{{ [context.bait] | sum(attribute='secret') }}",
    "{{ [context.bait] | unique(attribute='secret') | list }}",
    "{{ [context.bait] | join(',', attribute='secret') }}", "{{ [context.bait] | max(attribute='secret') }}",
    "{{ [context.bait] | rejectattr('secret') | list }}", "{{ context.bait | attr('secret') }}",
    "{{ ['a'] | map('attr', '__class__') | list }}", "{{ ['a'] | map('flat call', '__class__') | list }}",
    "{{ ['a'] | map('flat tick') | list }}", "{{ [-9] | map('flat tick') | list }}",
    "{{ ['a'] | map('format') }}",
    "{{ context.l.append(4) }}", "{{ context.l.pop() }}", "{{ context.l.clear() }}", "{{ context.l.sort() }}",
    "{{ context.l.reverse() }}", "{{ context.l.extend([1]) }}", "{{ context.l.insert(0, 1) }}",
    "{{ context.l.remove(1) }}", "{{ context.d.update({'a': 2}) }}", "{{ context.d.pop('a') }}",
    "{{ context.d.clear() }}", "{{ context.d.setdefault('z', 1) }}", "{{ context.d.popitem() }}",
    "{{ context.set.add(9) }}", "{{ context.d.__setitem__('a', 2) }}", "{{ context.l.__iadd__([1]) }}",
    "{{ dict.fromkeys([1]) }}", "{{ context.l.copy.__self__ }}", "{{ context.s.encode() }}",
    "{{ context.s.translate({}) }}", "{{ context.n.to_bytes(2, 'big') }}", "{{ context.f.hex() }}",
    "{% set context.n = 6 %}", "{% set ns = namespace(x=1) %}", "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}", "{% from 'os' import system %}", "{% extends 'x' %}",
    "{% block a %}{% endblock %}",
    "{% autoescape true %}x{% endautoescape %}", "{% do context.l.append(1) %}", "{% debug %}",
    "{% for x in ''.__class__.__mro__ %}{{ x }}{% endfor %}", "{% if ''.__class__ %}x{% endif %}",
    "{% macro m() %}{% endmacro %}{{ m }}", "{% macro m() %}{% endmacro %}{{ m.__init__.__globals__ }}",
    "{% macro m() %}{% endmacro %}{{ m._func.__globals__ }}",
    "{% macro m() %}{{ caller.__init__ }}{% endmacro %}{{ m() }}",
    "{% macro m() %}{{ varargs.__class__ }}{{ kwargs.__class__ }}{% endmacro %}{{ m(1, a=2) }}",
    "{% for x in [1] %}{{ loop.__init__.__globals__ }}{% endfor %}",
    "{% for x in [1] %}{{ loop }}{% endfor %}",
    "{% for x in [1] %}{{ loop._iterator.gi_frame }}{% endfor %}",
    "{% for x in [1] %}{{ loop.cycle.__func__ }}{% endfor %}",
    "{{ (context.l | map('upper')).gi_frame }}", "{{ (x for x in []) }}", "{{ context.get.__self__ }}",
    "{{ super() }}",
    "{{ context.l | pprint }}", "{{ context.l | random }}", "{{ context.d | xmlattr }}", "{{ 'x' | urlize }}",
    "{{ range.__class__ }}", "{{ range(3).__class__ }}", "{{ dict(a=1).__class__ }}",
    "{{ undefined_name.__class__ }}",
    "{{ context.zz.__class__.__mro__ }}", "{{ context.zz._undefined_exception }}", "{{ 1 is callable }}",
    "{{ [1] | select('filter') | list }}", "{{ (1, 2).count.__self__ }}", "{{ ('a' ~ 'b').__class__ }}",
    "{{ (context | tojson).__class__ }}", "{{ (context.rows | groupby('n'))[0].__class__ }}",
    "{{ (context.rows | groupby('n'))[0]._asdict() }}", "{{ (context.rows | groupby('n'))[0]._replace }}",
)  # fmt: skip

SSTI = (*_WALKED, *_OTHER)
"""Templates that reach for Python."""
CHOSEN = (*_WALKED[:: len(_WALKS) + 1], *_OTHER)
"""Fewer of them: each start and each walk once, and all the others."""

LEAKS = ("<class", "<function", "<built-in", "<bound", "<generator", "<module", "object at 0x", "<Macro", "<slot",
          "<Loop", "<Template", "<method", SECRET, "root:", "uid=", "GLOBALS", "mappingproxy")  # fmt: skip

RUNAWAYS = (
    "{{ 'a' * 10**9 }}", "{{ 10**9 * 'a' }}", "{{ [0] * 10**9 }}", "{{ (0,) * 10**9 }}",
    "{{ 'a' * 3000000 }}",
    "{{ 2 ** 10**9 }}", "{{ 10 ** 10 ** 10 }}", "{{ (2 ** 4000) * (2 ** 4000) }}", "{{ 2 ** -10**9 ** 9 }}",
    "{% if 'a' * 10**9 %}x{% endif %}", "{% set x = 'a' * 10**9 %}", "{{ ('a' * 10**9) | length }}",
    "{% for i in range(10**9) %}{% endfor %}", "{{ range(10**9) | list }}", "{{ range(10**30) }}",
    "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",

    "{% for i in range(99999) %}{% for j in range(99999) %}{% for k in range(99999) %}x{% endfor %}{% endfor %}{% endfor %}",
    "{% for i in range(100000) if range(100000) | sum %}{% endfor %}",
    "{% for i in range(100000) %}{{ range(100000) | list | length }}{% endfor %}",
    "{% for i in range(100000) %}{{ 'x' * 1000 }}{% endfor %}",
    "{% for i in range(100000) %}" + "x" * 1000 + "{% endfor %}",
    "{% for i in [1] recursive %}{{ loop([1, 1]) }}{% endfor %}",
    "{% for i in range(9) recursive %}{% if 1 %}{{ loop(range(9)) }}{% endif %}{% endfor %}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",

    "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% else %}" + "x" * 999 + "{% endif %}{% endmacro %}{{ m(40) }}",

    "{% macro m() %}{{ caller() }}{{ caller() }}{% endmacro %}" + "{% call m() %}" * 15 + "x" * 999 + "{% endcall %}" * 15,
    "{{ 'x' | center(10**9) }}", "{{ 'x'.center(10**9) }}", "{{ 'x'.ljust(10**9) }}",
    "{{ 'x'.rjust(10**9) }}",
    "{{ 'x'.zfill(10**9) }}", "{{ 'x' | indent(10**9, true) }}", "{{ ('a\n' * 9999) | indent(9999) }}",
    "{{ ('a\n' * 99999) | indent('x' * 99999) }}",
    "{{ ('a ' * 99999) | wordwrap(1, wrapstring='x' * 99999) }}",
    "{{ ('a' * 999999) | wordwrap(1) }}", "{{ '%1000000000d' % 1 }}", "{{ '%1000000000d' | format(1) }}",
    "{{ '%.1000000000f' % 1.5 }}", "{{ '%*d' % (10**9, 1) }}", "{{ '%99999999999999999999d' % 1 }}",
    "{{ ('%9999d' * 9999) % ((1,) * 9999) }}", "{{ ('%(a)s' * 9999) % {'a': 'x' * 99999} }}",
    "{{ ('a' * 99999) | replace('a', 'b' * 99999) }}", "{{ ('a' * 99999).replace('', 'b' * 99999) }}",
    "{{ ('a' * 99999) | replace('', 'b' * 99999) }}", "{{ ['a'] * 99999 | join('b' * 99999) }}",
    "{{ (['a'] * 99999) | join('b' * 99999) }}", "{{ ('b' * 99999).join(['a'] * 99999) }}",
    "{% set a = 'x' * 999 %}" + "{% set a = a ~ a %}" * 30 + "{{ a }}",
    "{% set a = 'x' * 999 %}" + "{% set a = a + a %}" * 30 + "{{ a }}",
    "{% set a = [1] %}" + "{% set a = a + a %}" * 40 + "{{ a }}",
    "{% set a = [1] %}" + "{% set a = [a, a] %}" * 40 + "{{ a }}",
    "{% set a = [1] %}" + "{% set a = {'a': a, 'b': a} %}" * 40 + "{{ a }}",
    "{% set a = (1,) %}" + "{% set a = (a, a) %}" * 40 + "{{ a == a }}{{ a }}",
    "{% set a = [1] %}{% set b = [1] %}" + "{% set a = [a, a] %}{% set b = [b, b] %}" * 30 + "{{ a == b }}",
    "{% set a = [1] %}" + "{% set a = dict(a=a, b=a) %}" * 40 + "{{ a }}",
    "{% set a = [[1] * 9999] * 9999 %}{% set b = [[1] * 9999] * 9999 %}{{ a == b }}",
    "{% set s = 'x' * 900000 %}{{ [s, s, s, s, s, s, s] | join }}",
    "{% set s = 'x' * 900000 %}{{ [s, s, s, s, s, s, s] }}",
    "{% set s = 'x' * 900000 %}{% for i in range(100000) %}{% if s == s ~ '' %}{% endif %}{% endfor %}",
    "{% set s = 'x' * 900000 %}{% for i in range(100000) %}{% if 'y' in s %}{% endif %}{% endfor %}",
    "{% set s = 'x' * 900000 %}{% for i in range(100000) %}{% set t = s[1:] %}{% endfor %}",
    "{% set s = 'x' * 900000 %}{% for i in range(100000) %}{% set t = s | upper %}{% endfor %}",
    "{% set s = 'x' * 900000 %}{% for i in range(100000) %}{% set t = s.count('y') %}{% endfor %}",
    "{% set s = 'x' * 900000 %}{% for i in range(100000) %}{% if s is eq(s) %}{% endif %}{% endfor %}",
    "{% set a = [1] %}" + "{% set a = [a, a] %}" * 14 + "{% for i in range(100000) %}{% set b = [a] %}{% endfor %}",
    "{% set a = [1] %}{% set b = [1] %}" + "{% set a = [a, a] %}{% set b = [b, b] %}" * 14
    + "{% for i in range(100000) %}{% if a == b %}{% endif %}{% endfor %}",
    "{% set a = [1] %}" + "{% set a = [a, a] %}" * 14 + "{% for i in range(100000) %}{% if a is eq(b) %}{% endif %}{% endfor %}",
    "{{ ('a,' * 900000).split(',') }}", "{{ ('a ' * 900000).split() | length }}",
    "{{ ('a\n' * 900000).splitlines() }}",
    "{{ ('é' * 900000) | list | length }}", "{{ ('é' * 900000) | sort | length }}",
    "{{ ('a' * 900000) | map('upper') | list }}",
    "{{ ('é' * 900000) | batch(1) | list }}", "{{ [1] | batch(10**9, 'x') | list }}",
    "{{ [1] | slice(10**9) | list }}",
    "{{ 1.5 | round(10**9, 'ceil') }}", "{{ {'a': [1]} | tojson(10**9) }}", "{{ ('😀' * 1900000) | tojson }}",
    "{{ ['😀' * 1900000] }}", "{{ (range(99999) | map('string') | map('upper') | map('lower') | list) }}",
    "{{ [[]] * 99999 | sum(start=[]) }}", "{{ ([[1] * 99] * 9999) | sum(start=[]) }}",
    "{{ ('[' * 99999) | fromjson }}",
    "{{ ('[' ~ '[],' * 300000 ~ '1]') | fromjson }}", "{{ ('9' * 5000) | int }}", "{{ '9' * 99999 | int }}",
    "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "{{ " + "1+" * 5000 + "1 }}",
    "{{ " + "not " * 5000 + "1 }}",
    "{{ " + "-" * 5000 + "1 }}", "{{ " + "[" * 3000 + "]" * 3000 + " }}",
    "{% if 1 %}" * 900 + "{% endif %}" * 900,
    "{% for i in [1] %}" * 50 + "{% endfor %}" * 50, "{{ " + "9" * 9999 + " }}", "{{ a" + ".a" * 9999 + " }}",
    "{{ 'x'" + "|upper" * 9999 + " }}", "{{ " + "1 if 1 else " * 999 + "1 }}",
    "x" * 2_000_000 + "{{ 1 + 1 }}",
    "{{ ('x ' * 900000) | title }}", "{{ ('x ' * 900000) | wordcount }}", "{{ ('&' * 1000000) | e }}",
    "{{ ('é' * 900000) | urlencode }}", "{% filter replace('', 'x' * 9999) %}" + "y" * 9999 + "{% endfilter %}",
    "{{ ('x' * 99).translate({}) }}", "{{ lipsum(n=10**9) }}", "{{ 1 | filesizeformat * 10**9 }}",
)  # fmt: skip
"""Templates that would take for ever, or all memory."""

ATTRIBUTES = tuple(
    f"{start}{walk} != null"
    for start in ("context.s", "context.n", "context.l", "context.bait", "context", "'x'", "(1)", "[1]", "context.d")
    for walk in (".__class__", ".__class__.__mro__", ".__init__.__globals__", ".__dict__", ".secret", ".run", ".append")
)  # fmt: skip

REFUSED = (
    "__import__('os')", "__import__('os').system('id')", "open('/etc/passwd')", "eval('1')", "exec('1')", "().__class__()",
    "context.__class__()", "context.s.upper()", "context.l.append(4)", "context.d.update(context.d)", "context.bait.run()",
    "getattr(context, 'd')", "type(context)", "context.s['__class__']", "context.l['append']", "context.d['__class__']",
    "context.bait['secret']", "context['__class__']", "[x for x in context.l]", "(x for x in context.l)", "{1: 2}", "{1}",
    "lambda: 1", "(lambda: 1)()", "context.l[0:2]", "f'{context}'", "b'x'", "1j == 1", "...", "x := 1", "context.n = 3",
    "context.n += 1", "del context.n", "import os", "context.n; context.n", "print(1)", "os.system", "__builtins__",
    "self.x", "context if 1 else 2", "yield 1", "await context", "*context.l", "**context.d", "~context.n", "1 << 99",
    "1 @ 2", "context.n is 5", "`id`", "$(id)", "${context}", "{{ context }}", "{% if x %}", "context..n", ".context",
    "context.n.", "context.[0]", "context.l[", "context.l]", "'", '"', "\\", "'\\", "\x00", "\ud800", "context.\u200bn", "'\n'",
    "'a' * 10001 == ''", "'a' * 10**9", "'a' * 1000000000 == ''", "10000000000 * 'a' == ''", "[0] * 1000000000 == []",
    "[[0] * 9999] * 9999 == []", "([[1] * 100] * 100) == 1 and [([[1] * 50] * 50)] * 99 == 1", "context.big + context.big == ''",
    "[context.big, context.big, context.big] == 1", "9" * 1001 + " == 1", "1e9999 - 1e9999 < context.s", "9 ** 9 ** 9",
    "1" + " + 1" * 400, "(" * 200 + "1" + ")" * 200, "not " * 200 + "1", "-" * 200 + "1", "[" * 200 + "]" * 200,
    "context" + "[0]" * 400, "(1)" + ".a" * 400, "1" + " and (1" * 150 + ")" * 150, "x" * 10001, "'" + "x" * 9999 + "'" + "+1",
    "9" * 900 + " * " + "9" * 900 + " == 1", "(" * 9000, "context.l[" * 500, "1" + " < (1" * 120 + ")" * 120, "context.s * -1.5 == ''",
    "context.l[9999999999999999999999]", "context.s % context.n == 1", "'%1000000000d' % 1 == ''", "context.huge * 1.5 > 1",
    "context.huge / 3 > 1", "context.cycle == context.cycle2", "context.deep == context.deep2", "context.l < context.s",
)  # fmt: skip
"""Conditions of the language `simple` that must be refused."""


_PEAK = """
import resource
def peak():
    # Not `ru_maxrss` where it can be helped: on Linux a process begins with that of the one that started it.
    try:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 / 1024
"""


def run_in_a_child(code: str, sources: tuple[str, ...]) -> list[list[Any]]:
    """One line of measurements for each source, taken in a process with limits.

    The code may call `peak()`, the most memory taken so far, in MiB.
    """
    child = subprocess.run(
        [sys.executable, "-c", _PEAK + code], input=json.dumps(sources), capture_output=True, text=True, check=False,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    lines = child.stdout.splitlines()
    assert child.returncode == 0, f"stopped at {sources[len(lines)][:100]!r}: {child.stderr[-500:]}"
    return [json.loads(line) for line in lines]
