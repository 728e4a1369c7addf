"""What the pages for people share: their look, their head, and text that cannot mislead.

A page needs no script, no network and no other file; its policy allows none.
"""

from __future__ import annotations

import re
import unicodedata

HEAD = """\
<!doctype html>
<html lang="{{ lang }}">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
"""
STYLE = """\
:root{--paper:#fcfbf9;--ink:#1f2328;--soft:#5d656e;--line:#dfdcd6;--wash:#f0eee8;--on:#fff;
 --train:#2f6db5;--eval:#7a5ea8;--merged:#d9a441;--out:#c2452d;--good:#2c7a51;--warn:#a8410f}
@media screen and (prefers-color-scheme:dark){:root{--paper:#16191d;--ink:#e8e6e1;--soft:#a1a8b0;--line:#343a41;
 --wash:#262c33;--on:#14171a;--train:#6ea8e6;--eval:#b39ae0;--merged:#e0b763;--out:#ee8068;--good:#6cc398;
 --warn:#f2a071}}
*{box-sizing:border-box}
html{font-size:15px;-webkit-text-size-adjust:100%}
body{margin:0 auto;max-width:70rem;padding:2.5rem 1.6rem 4rem;background:var(--paper);color:var(--ink);
 font:1rem/1.55 system-ui,-apple-system,"Segoe UI","PingFang SC","Hiragino Sans GB","Microsoft YaHei",
 "Noto Sans CJK SC","Source Han Sans SC",sans-serif;font-variant-numeric:tabular-nums;overflow-wrap:anywhere}
#en:checked~* [lang=zh],#zh:checked~* [lang=en]{display:none}
body>input{position:absolute;opacity:0}
body>label{float:right;margin-left:.25rem;padding:.1rem .7rem;border-radius:1rem;color:var(--soft);font-size:.87rem;
 cursor:pointer}
input:checked+label{background:var(--ink);color:var(--paper)}
input:focus-visible+label{outline:2px solid var(--train);outline-offset:2px}
h1{margin:0;font-size:1rem;font-weight:600;color:var(--soft)}
h2{margin:0;font-size:1.07rem;line-height:1.4}
.lede{margin:.5rem 0 .25rem;font-size:clamp(1.6rem,1.1rem + 2vw,2.4rem);line-height:1.25;font-weight:650;
 text-wrap:balance}
.soft,small,caption,th,dt,figcaption{color:var(--soft)}
small,figcaption,caption,dt,footer{font-size:.87rem}
a{color:inherit;text-decoration-color:var(--line);text-underline-offset:.2em}
a:hover{text-decoration-color:currentColor}
ul,dl,dd,p,figure{margin:0;padding:0;list-style:none}
.points{display:grid;grid-template-columns:repeat(3,1fr);gap:0 1.6rem;margin-top:1.5rem}
.points li{padding:.6rem 0;border-top:1px solid var(--line);line-height:1.4}
.points small{display:block;font-weight:600}
.fine small{color:var(--good)}.look small{color:var(--warn)}
section{display:grid;grid-template-columns:10rem minmax(0,1fr);gap:0 2rem;margin-top:2.25rem;padding-top:1rem;
 border-top:1px solid var(--ink)}
section>div>*+*{margin-top:1rem}
svg{display:block;width:100%;overflow:visible;font-size:.73rem;fill:var(--soft)}
.train{fill:var(--train);color:var(--train)}.eval{fill:var(--eval);color:var(--eval)}
.merged{fill:var(--merged);color:var(--merged)}.out{fill:var(--out);color:var(--out)}
svg .on{fill:var(--on);font-size:.87rem;font-weight:600}svg .on.dark{fill:#16191d}
i{display:inline-block;width:.7em;height:.7em;margin-right:.4em;border-radius:2px;background:currentColor}
figcaption{margin-top:.4rem}figcaption b{margin-right:1em;font-weight:400;white-space:nowrap}
.sum{display:grid;grid-template-columns:repeat(5,auto);justify-content:space-between;gap:.75rem}
.sum dd{font-size:clamp(1.2rem,.9rem + 1.4vw,1.45rem);font-weight:650;line-height:1.3;white-space:nowrap}
.sum dd span{margin-right:.3em;font-weight:400;color:var(--soft)}
.sum small{display:block;font-size:.87rem;font-weight:400}
table{width:100%;border-collapse:collapse;line-height:1.45}
caption{text-align:left}
th,td{padding:.4rem .75rem .4rem 0;border-bottom:1px solid var(--line);text-align:left;vertical-align:top}
th:last-child,td:last-child{padding-right:0}
tbody tr:last-child>*{border-bottom:0}
th{font-weight:400}thead th{font-size:.8rem}
td small{display:block}
.r,.fit{white-space:nowrap;overflow-wrap:normal}.r{text-align:right}.fit{width:1%}.half{width:50%}
code{font:.87em ui-monospace,SFMono-Regular,Menlo,Consolas,"Noto Sans Mono CJK SC",monospace}
.tag{padding:0 .4em;border-radius:3px;background:var(--wash);font-size:.8rem;white-space:nowrap}
.two,.wide{display:grid;grid-template-columns:repeat(2,minmax(0,1fr));gap:1rem 2rem}
.wide{grid-template-columns:minmax(0,5fr) minmax(0,3fr);align-items:start}
td li+li{margin-top:.25rem;padding-top:.25rem;border-top:1px dashed var(--line)}
footer{margin-top:2.25rem;color:var(--soft)}
@media screen and (max-width:44rem){body{padding:1rem 1rem 2rem}section{display:block;margin-top:1.75rem}
 h2{margin-bottom:.75rem}.points{grid-template-columns:1fr 1fr;gap:0 1rem}
 .sum{grid-template-columns:repeat(2,minmax(0,1fr))}
 .sum>:first-child{grid-column:1/-1}.two,.wide{grid-template-columns:minmax(0,1fr)}
 th,td{padding-right:.5rem}.num{display:none}}
@page{size:A4;margin:11mm 12mm}
@media print{:root{--paper:#fff}html{font-size:10.5px}body{max-width:none;padding:0;line-height:1.4}
 body>label{display:none}section{grid-template-columns:8rem minmax(0,1fr);gap:0 1rem;margin-top:.9rem;padding-top:.5rem}
 section>div>*+*,.points{margin-top:.5rem}.points li,th,td{padding-top:.2rem;padding-bottom:.2rem}
 tr,figure,.sum{break-inside:avoid}*{print-color-adjust:exact;-webkit-print-color-adjust:exact}}
"""


def written_out(text: str) -> str:
    """Return the text with marks that turn or hide text written out, as their numbers; line breaks and tabs stay."""

    def plain(mark: str) -> str:
        hides = unicodedata.category(mark) in ("Cc", "Cf", "Cs", "Co")
        return f"\\u{ord(mark):04x}" if hides and mark not in "\n\t\u200c\u200d" else mark  # emoji, Persian

    return "".join(map(plain, text))


def clip(text: str, limit: int = 120) -> str:
    """Return an excerpt on one line; marks that turn or hide text are written out, as their numbers."""
    text = re.sub(r"[^\S\n]+", " ", re.sub(r"\s*\n\s*", " ↵ ", text.strip()))
    return written_out(text if len(text) <= limit else text[: limit - 1].rstrip() + "…")
