"""Odd things that people, editors and attackers put into config files, as YAML and as names."""

from __future__ import annotations

WORDS = r"""
2026-11-31 2026-11-30 0x_ 0b 0b_ 0o17 010 08 1:30 190:20:30.15 1_000 +.inf -.inf .nan .NaN nan inf
1e999 '1e999' 1e-999 9.9e307 yes No ON off ~ null '' "\0" "a\nb" "\u202e" "\ud800" "\udfff\ud800"
"\x1b[2J" "\U00110000" "\xZZ" -oProxyCommand=x '$(id)' '`id`' 'a;b' 'a|b' '../../etc' '~' '/' '.'
'~no-such-user/x' '..' gpu..example.com '-' '*' "gpu\uff0eexample" "\u0440\u0430u" '[::1]' '::1'
'fe80::1%eth0' 'fe80::1%' 'a@b' 'a:22' 'ssh://a' [] {} [[]] [null] [2026-01-01] {1:2} *nowhere
!!binary aGk= !!python/name:os.system = << hub: hub:a/b@c/d 'hub:a/b@c/../d' '{' '{a' '{}'
-1 0 1.5 True 'true' auto 90s 1e400s 99999999999999999999h 1000000000000000000
"""
LINES = r"""
2026-11-30 25:61:61
'-oProxyCommand=touch INJECTED;:'
'a b'
{a: {b: {c: {}}}}
[yes, no]
[1, 2]
{? [1] : 2}
{null: 1}
{yes: 1}
!!binary 'not base64!'
!!python/object/apply:os.system ['x']
!!timestamp nonsense
!!int abc
!!float x
!!bool maybe
!!set {a, b}
!!omap [a: 1]
!unknown x
!!str 12
&a [*a]
&a {b: *a}
{<<: 3}
{<<: [1]}
{<<: {steps: 3}}
{a: 1, a: 2}
'{text!r:>{width}}'
'@revoked * ssh-ed25519 AAAA'
"""
ODDITIES = [
    *WORDS.split(),
    *LINES.strip().splitlines(),
    "",
    "|\n  text",
    "'\t'",
    "9" * 5000,
    f"'{'9' * 4000}'",
    f"-{'9' * 30}",
    f"'{'a' * 300}'",
    f"'{'a/' * 3000}'",
    f"'{'a.' * 200}'",
    "[" * 3000 + "]" * 3000,
]

HOST_WORDS = (
    r"gpu..example.com .gpu -oProxyCommand=x a;b $(id) a@b a:22 ssh://a [::1] fe80::1% a/b a\b ' a-"
)
HOSTS = [
    *HOST_WORDS.split(),
    *("a b", "a\tb", "gpu\uff0eexample", "\u0440\u0430u.example", "a" * 64, "a." * 130, "a\u200b"),
]
USER_WORDS = r"""-l a;b a$(id) a`id` a/b a'b a"b a|b a&b a>b a:b"""
USERS = [
    *USER_WORDS.split(),
    *(
        "-oProxyCommand=touch INJECTED;:",
        "",
        " ",
        "a b",
        "a\nb",
        "a\u202eb",
        "r\u043e\u043et",
        "a" * 65,
    ),
]
PYTHONS = ["-c", "python3 -c x", "py;thon", "$(id)", "~/bin/python", "py\nthon", "a" * 256]
KEYS = ["-oProxyCommand=x", "", 'a"b', "a${HOME}b", "a\nb", "a\0b", "~no-such-user/id"]
