"""The data stage's page: report.json as one HTML file that needs no script, no network and no other file.

A team decides on it whether its data is fit for training. The template is a string: the images' digest covers *.py.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from temper.page import HEAD, STYLE, clip

if TYPE_CHECKING:
    from markupsafe import Markup

ZH = {  # what temper.data.reasons says, by code
    "not-csv": ("无法按 CSV 读取", "字段内的引号写两遍，并给整个字段加引号"),
    "unclosed-quote": ("引号有开无合", "补上引号；字段内的引号写两遍"),
    "field-count": ("字段数与表头不符", "含分隔符的字段要加引号"),
    "not-json": ("不是有效的 JSON", "每行写一个 JSON 对象"),
    "not-an-object": ("不是带字段的对象", "每行写成 {…}，每个值都有名称"),
    "encoding": ("字节或字符已损坏", "从源头重新存为 UTF-8"),
    "wrong-type": ("值不是文本", "问题和回答都写成文本"),
    "empty-question": ("问题为空", "补上，或删去该行"),
    "empty-answer": ("回答为空", "补上，或删去该行"),
    "control-character": ("文本中有控制字符", "删去；多半来自损坏的导出"),
    "too-long": ("超过 data.max_chars", "拆成几行，或调高 data.max_chars"),
    "role-order": ("说话人没有交替", "user 与 assistant 须交替，从 user 开始，到 assistant 结束"),
    "unknown-role": ("角色不在训练之列", "用 system、user、assistant（human、gpt）"),
    "code-syntax": ("Python 代码无法解析", "改正代码，或去掉围栏上的语言名"),
    "no-preference": ("较好与较差的回答相同", "给出质量不同的两个回答"),
    "personal-data": ("含有个人信息", "替换掉，或把 data.personal 设为 mask"),
}


def _both(en: str, zh: str, *values: Any) -> Markup:
    """Return a text in both languages, of which the page shows one; `values` fill the braces and are escaped."""
    from markupsafe import Markup

    if values:
        en, zh = Markup(en).format(*values), Markup(zh).format(*values)
    return Markup('<span lang="en">{}</span><span lang="zh">{}</span>').format(en, zh)


def _share(part: int, whole: int) -> str:
    """Return a percentage that never rounds something to nothing, nor nearly all to all."""
    percent = 100 * part / (whole or 1)
    if 0 < percent < 0.1:
        return "<0.1%"
    return ">99.9%" if 99.9 < percent < 100 else f"{percent:.1f}".removesuffix(".0") + "%"


def _short(count: int) -> str:
    """Return a count in at most four digits, for the top of a bar."""
    if count < 1000:
        return str(count)
    return f"{count / 1000:.3g}k" if count < 999_500 else f"{count / 1_000_000:.3g}M"


def _stack(counts: Sequence[int]) -> list[tuple[float, float]]:
    """Return (start, width) in percent for each part of a bar; a part that is not empty stays visible."""
    widths = [max(count / (sum(counts) or 1), 0.008) if count else 0 for count in counts]
    scale = 100 / (sum(widths) or 1)
    return [(round(scale * sum(widths[:at]), 2), round(scale * width, 2)) for at, width in enumerate(widths)]


def _chart(rows: Sequence[Sequence[int]], cutoff: int, height: int) -> dict[str, Any]:
    """Return a histogram's bars, with empty ones in gaps and up to `cutoff`, and the place of the cutoff in percent."""
    none = [0] * (len(rows[0]) - 1)
    filled: list[Sequence[int]] = []
    for row in [*rows, *([[cutoff, *none]] if cutoff > rows[-1][0] else [])]:
        while filled and row[0] > 2 * max(1, filled[-1][0]):
            filled.append([2 * max(1, filled[-1][0]), *none])
        filled.append(row)
    top, step = max(sum(row[1:]) for row in filled) or 1, 100 / len(filled)
    bars, line, below = [], 0.0, 0
    for at, (bound, *counts) in enumerate(filled):
        tall = [round(max(height * count / top, 1.5 if count else 0), 1) for count in counts]
        parts = [(round(height - sum(tall[: index + 1]), 1), part) for index, part in enumerate(tall)]
        bars.append({"middle": round((at + 0.5) * step, 2), "bound": bound, "rows": sum(counts), "parts": parts})
        if below < cutoff <= bound:
            line = round((at + (cutoff - below) / (bound - below)) * step, 2)
        below = bound
    return {"bars": bars, "width": round(min(0.84 * step, 14), 2), "line": line}


def _points(report: dict[str, Any]) -> list[tuple[str, str, int | None, Markup]]:
    """Return what to know before training: (fine, look or open; where the page tells more; how many; of what)."""
    rejected, conflicts, by = report["rejected"], report["conflicts"]["questions"], report["duplicates_by"]
    tokens, personal = report["tokens"], report["personal_data"]
    cut = tokens and tokens["train"]["truncated"]
    found = personal and personal["rows"]
    alike = by["near"] + by["across_split"] if report["near_duplicates"] else None
    done = {"mask": (", masked", "，已遮盖"), "drop": (", rejected", "，已剔除")}
    then = done.get(personal["action"], ("", "")) if found else ("", "")
    allowed, too_many = f"{100 * report['max_rejected']:g}%", rejected > report["max_rejected"] * report["read"]
    points = [
        ("rejected", rejected, too_many, _both("Rejected ({} allowed)", "剔除（允许 {}）", allowed)),
        ("split", report["eval"], not report["eval"], _both("Held out to measure the model", "留作评测")),
        ("tokens", cut, cut, _both("Cut off in training", "训练时会被截断")),
        ("personal", found, found and not then[0], _both(f"With personal data{then[0]}", f"含个人信息{then[1]}")),
        ("duplicates", alike, False, _both("Nearly the same, left out", "近似重复，已去除")),
        ("duplicates", conflicts, conflicts, _both("Questions with different answers", "答案不一致的问题")),
    ]
    return [
        ("open" if count is None else "look" if bad else "fine", where, count, name)
        for where, count, bad, name in points
    ]


def page(report: dict[str, Any]) -> str:
    """Return report.html; equal reports give equal bytes. It opens in Chinese when an example row holds Chinese."""
    import jinja2

    made = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.globals.update(t=_both, stack=_stack, chart=_chart, chinese=ZH, zip=zip)
    made.filters.update(clip=clip, of=_share, short=_short, n="{:,}".format)
    chinese = re.search("[\u4e00-\u9fff]", "".join(row["instruction"] + row["output"] for row in report["examples"]))
    first = "zh" if chinese else "en"
    return made.from_string(TEMPLATE).render(report, points=_points(report), lang=first) + "\n"


# Of the data report, and of the report on a model.
TEMPLATE = (
    HEAD
    + """\
<title>Data report · 数据报告</title>
<style>
"""
    + STYLE
    + """\
</style>
</head>
<body>
{% macro open(id, en, zh) %}<section id="{{ id }}"><h2>{{ t(en, zh) }}</h2><div>{% endmacro %}
{% macro data(text, limit=120) %}<bdi>{{ text | clip(limit) }}</bdi>{% endmacro %}
{% macro heads(names) %}
<thead><tr>{% for en, zh, kind in names %}<th class="{{ kind }}">{{ t(en, zh) }}</th>{% endfor %}</tr></thead>
{% endmacro %}
{% macro more(all, shown) %}
{% if all | length > shown %}
<p class="soft">{{ t("and {:,} more", "另有 {:,} 项", all | length - shown) }}</p>
{% endif %}
{% endmacro %}
{% macro histogram(title, rows, height=100, cutoff=0) %}
{% set drawn = chart(rows, cutoff, height) %}
<svg height="{{ height + 36 }}" role="img"><title>{{ title }}: {% for bar in drawn.bars %}≤ {{ bar.bound }}:
 {{- " %d" % bar.rows }}{{ ", " if not loop.last }}{% endfor %}</title><svg y="16" height="{{ height + 20 }}">
{% if cutoff %}
<rect x="{{ drawn.line }}%" y="-12" width="{{ (100 - drawn.line) | round(2) }}%" height="{{ height + 12 }}"
 class="out" opacity=".1"/>
<rect x="{{ drawn.line }}%" y="-16" width="2" height="{{ height + 20 }}" class="out"/>
{% endif %}
{% for bar in drawn.bars %}
<g>{% for y, tall in bar.parts if tall %}
<rect x="{{ (bar.middle - drawn.width / 2) | round(2) }}%" y="{{ y }}" width="{{ drawn.width }}%" height="{{ tall }}"
 class="{{ ["train", "eval"][loop.index0] }}"/>
{% endfor %}
{% if bar.rows %}
<text class="num" x="{{ bar.middle }}%" y="{{ (bar.parts[-1][0] - 4) | round(1) }}" text-anchor="middle">
{{- bar.rows | short }}</text>
{% endif %}
<text x="{{ bar.middle }}%" y="{{ height + 16 }}" text-anchor="middle">
{{- bar.bound // 1024 ~ "k" if bar.bound and bar.bound % 1024 == 0 else bar.bound | short }}</text></g>
{% endfor %}
<rect y="{{ height }}" width="100%" height="1" opacity=".5"/></svg></svg>
{% endmacro %}
{% set sides = {"train": t("to train on", "用于训练"), "eval": t("held out", "留作评测")} %}
{% set parts = [("train", train, sides.train), ("eval", eval, sides.eval),
 ("merged", duplicates, t("merged as duplicates", "合并的重复")), ("out", rejected, t("rejected", "剔除"))] %}
{% set states = {"fine": t("✓ fine", "✓ 正常"), "look": t("! look", "! 留意"),
 "open": t("? not checked", "? 未检查")} %}
<input type="radio" name="lang" id="en"{{ " checked" if lang == "en" }}><label for="en" lang="en">English</label>
<input type="radio" name="lang" id="zh"{{ " checked" if lang == "zh" }}><label for="zh" lang="zh">中文</label>
<header>
<h1>{{ t("Data report", "数据报告") }}</h1>
<p class="lede">{{ t("{:,} of {:,} rows to train on", "{1:,} 行中 {0:,} 行用于训练", train, read) }}</p>
{% set state = points | map("first") | list %}
<p>{{ t("Points to look at before training: {}. Not checked: {}.", "训练前请留意 {} 处；未检查 {} 项。",
 state.count("look"), state.count("open")) }}</p>
<ul class="points">
{% for state, where, count, name in points %}
<li class="{{ state }}"><small>{{ states[state] }}</small><a href="#{{ where }}">{{ name }}</a>
{% if count is not none %}<b>{{ count | n }}</b>{% endif %}</li>
{% endfor %}
</ul>
</header>
<main>
{{ open("account", "The account", "账目") }}
<svg height="44" role="img"><title>{{ read | n }} = {{ train | n }} to train on · 用于训练
 + {{ eval | n }} held out · 留作评测 + {{ duplicates | n }} merged · 合并 + {{ rejected | n }} rejected · 剔除</title>
{% for (kind, count, name), (x, width) in zip(parts, stack([train, eval, duplicates, rejected])) if count %}
<rect x="{{ x }}%" width="{{ width }}%" height="44" class="{{ kind }}" style="stroke:var(--paper)"/>
{% if width > 1.3 * (count | n | length) %}<text x="{{ (x + width / 2) | round(2) }}%" y="27" text-anchor="middle"
 class="on{{ " dark" if kind == "merged" }}{{ " num" if width < 18 }}">{{ count | n }}</text>{% endif %}
{% endfor %}
</svg>
<dl class="sum"><div><dt>{{ t("rows read", "读入行数") }}</dt><dd>{{ read | n }}</dd></div>
{% for kind, count, name in parts %}
<div><dt><i class="{{ kind }}"></i>{{ name }}</dt><dd><span>{{ "+" if loop.index0 else
 "=" if read == train + eval + duplicates + rejected else "≠" }}</span>{{ count | n }}
<small>{{ count | of(read) }}</small></dd></div>
{% endfor %}
</dl>
</div></section>

{{ open("rejected", "Rejected, and why", "剔除的行与原因") }}
{% if reasons %}
<table>{{ heads([("rows", "行数", "r fit"), ("why, and what to do", "原因与办法", ""),
 ("first in line", "最先出现的行", "")]) }}
<tbody>{% for item in reasons %}{% set said = chinese.get(item.reason, (item.text, item.remedy)) %}
<tr><td class="r">{{ item.count | n }}</td><td>{{ t(data(item.text), data(said[0])) }}
<small>{{ t(data(item.remedy), data(said[1])) }}</small></td><td>
{% for file, places in item.first[:3] | groupby("file", case_sensitive=True) %}
<code>{{ data(file, 60) }}: {{ places | map(attribute="line") | join(", ") }}</code><br>
{% endfor %}</td></tr>
{% endfor %}
</tbody></table>
<p class="soft">{{ t("Every rejected row is in rejected.jsonl.", "剔除的每一行都在 rejected.jsonl 里。") }}</p>
{% else %}<p>{{ t("No row was rejected.", "没有剔除任何行。") }}</p>{% endif %}
</div></section>

{{ open("files", "Files read", "读入的文件") }}
<table>{{ heads([("file", "文件", ""), ("shape and columns", "结构与列", ""), ("rows", "行数", "r"),
 ("rejected", "剔除", "r")]) }}
<tbody>{% for file in files[:12] %}
<tr><td>{{ data(file.file, 80) }}
{% if file.eval %}<span class="tag">{{ t("for evaluation", "评测用") }}</span>{% endif %}
<small>{{ [file.kind, file.compression, file.encoding] | select | join(" · ") }}</small></td>
<td>{{ file.shape }}<small>{% for field, column in file["columns"].items() if column %}
{{ field }}&nbsp;← {{ data(column, 40) }}{{ ", " if not loop.last }}
{% endfor %}</small></td><td class="r">{{ file.rows | n }}</td><td class="r">{{ file.rejected | n }}</td></tr>
{% endfor %}
</tbody></table>{{ more(files, 12) }}
</div></section>

{{ open("normalised", "Normalised", "规范化") }}
{% if normalised is none %}<p>{{ t("Switched off: the text is as it came.", "已关闭：文本保持原样。") }}</p>
{% else %}<p>{{ t("Rows changed: ", "改动的行数：") }}
{%- for name, label in [("unicode", t("Unicode form", "Unicode 形式")), ("line_ends", t("line ends", "换行符")),
 ("full_width_space", t("full-width spaces", "全角空格")), ("html", t("HTML remains", "HTML 残留")),
 ("blanks", t("blanks around the text", "首尾空白"))] %}
{{ label }} <b>{{ normalised[name] | n }}</b>{{ " · " if not loop.last }}
{% endfor %}</p>{% endif %}
</div></section>

{{ open("personal", "Personal data", "个人信息") }}
{% if personal_data is none %}<p>{{ t("Switched off: nothing was searched for.", "已关闭：没有查找。") }}</p>
{% else %}
{% set kinds = {"email": t("e-mail", "邮箱"), "mobile": t("mobile number", "手机号"),
 "cn_id": t("ID number", "身份证号"), "bank_card": t("bank card", "银行卡号"),
 "ip": t("IP address", "IP 地址"), "api_key": t("API key", "API 密钥")} %}
<p>{{ t("Rows with personal data: {:,}. ", "含个人信息：{:,} 行。", personal_data.rows) }}
{%- if personal_data.rows %}{{ {"report": t("They are left as they are.", "保持原样，未作处理。"),
 "mask": t("What was found is masked.", "找到的内容已遮盖。"),
 "drop": t("They are rejected.", "已剔除。")}[personal_data.action] }}
{% endif %}</p>
<p>{% for kind, count in personal_data.kinds.items() %}
{{ kinds.get(kind, kind) }} <b>{{ count | n }}</b>{{ " · " if not loop.last }}
{% endfor %}</p>
{% if personal_data.examples %}
<table>{{ heads([("kind", "种类", "fit"), ("excerpt, masked", "片段（已遮盖）", ""), ("place", "位置", "")]) }}
<tbody>{% for item in personal_data.examples[:4] %}
<tr><td class="fit">{{ kinds.get(item.kind, item.kind) }}</td><td>{{ data(item.text, 100) }}</td>
<td><code>{{ data(item.file, 60) }}: {{ item.line }}</code></td></tr>
{% endfor %}
</tbody></table>
{% endif %}
<p class="soft">{{ t("Found by pattern; names and postal addresses are not searched for.",
 "按模式查找；不查找姓名和住址。") }}</p>
{% endif %}
</div></section>

{{ open("duplicates", "Duplicates and conflicts", "重复与冲突") }}
<p>{{ t("Merged: exact {:,} · nearly the same {:,} · like a question on the other side of the split {:,}",
 "已合并：完全相同 {:,} · 近似 {:,} · 与划分另一侧的问题近似 {:,}",
 duplicates_by.exact, duplicates_by.near, duplicates_by.across_split) }}</p>
{% if near_duplicates is none %}
<p>{{ t("The search for near-duplicates is switched off.", "近似重复的查找已关闭。") }}</p>
{% elif near_duplicates.examples %}
<table><caption>{{ t("Nearly the same: a likeness of {} or more", "近似：相似度不低于 {}",
 near_duplicates.threshold) }}</caption>
{{ heads([("likeness", "相似度", "fit"), ("kept", "保留", "half"), ("left out", "去除", "half")]) }}
<tbody>{% for item in near_duplicates.examples[:4] %}
<tr><td class="fit">{{ "%.2f" % item.likeness }}</td><td>{{ data(item.kept, 90) }}</td>
<td>{{ data(item.left_out, 90) }}</td></tr>
{% endfor %}
</tbody></table>
{% endif %}
<p>{{ t("Questions with different answers: {:,}. ", "答案不一致的问题：{:,} 个。", conflicts.questions) }}
{%- if conflicts.questions %}{{ t("All answers are kept.", "各个答案都保留。") }}{% endif %}</p>
{% if conflicts.examples %}
<table>{{ heads([("question", "问题", "half"), ("its answers", "各个答案", "half")]) }}
<tbody>{% for item in conflicts.examples[:4] %}
<tr><td>{{ data(item.question, 90) }}</td><td><ul>
{% for answer in item.answers[:3] %}<li>{{ data(answer, 90) }}</li>{% endfor %}</ul>
{{ more(item.answers, 3) }}</td></tr>
{% endfor %}
</tbody></table>
{% endif %}
</div></section>

{{ open("split", "The split", "划分") }}
<p>{% if not eval %}{{ t("No row is held out, so the tuned model cannot be measured on rows it has not seen.",
 "没有留出评测行，无法用未见过的行衡量模型。") }}
{% elif split.given %}{{ t("Rows held out: {:,}, those of the evaluation file.",
 "留作评测：{:,} 行，来自单独给出的评测文件。", eval) }}
{% else %}{{ t("Rows held out: {:,}, about {}%, drawn by the hash of the question: new rows never move old ones.",
 "留作评测：{:,} 行。按问题的哈希抽取约 {}%，新增行不会移动旧行。", eval, "%g" % (100 * split.eval_share)) }}
{% endif %}</p>
</div></section>

{{ open("tokens", "Length", "长度") }}
{% if tokens is none %}
<p>{{ t("Tokens were not counted: how many rows training would cut off is not known.",
 "未统计 token：不知道训练会截断多少行。") }}</p>
{% else %}
{% set cutoff = tokens.cutoff_len %}
<div class="wide"><figure>
{% if tokens.histogram %}{{ histogram("Rows by tokens · 按 token 数", tokens.histogram, 190, cutoff) }}{% endif %}
<figcaption><b><i class="train"></i>{{ sides.train }}</b><b><i class="eval"></i>{{ sides.eval }}</b>
<b><i class="out"></i>{{ t("cut off after {:,} tokens", "{:,} 个 token 之后截断", cutoff) }}</b><br>
{{ t("Rows by tokens, up to the number under the bar", "按 token 数统计的行数，上限见柱下") }}</figcaption></figure>
<table><caption>{{ t("Tokens a row, as {} counts", "每行 token 数，按 {} 统计", data(tokens.model, 60)) }}</caption>
<thead><tr><td></td>{% for side, name in sides.items() if tokens[side] %}<th class="r">{{ name }}</th>{% endfor %}</tr>
</thead><tbody>{% for name, label in [("median", t("median", "中位数")), ("mean", t("mean", "平均")),
 ("p95", t("95% have at most", "95% 不超过")), ("max", t("longest", "最长")), ("sum", t("in all", "合计"))] %}
<tr><th scope="row">{{ label }}</th>{% for side in [tokens.train, tokens.eval] if side %}
<td class="r">{{ side[name] | round | int | n }}</td>{% endfor %}</tr>
{% endfor %}
<tr><th scope="row">{{ t("rows cut off", "被截断的行") }}</th>{% for side in [tokens.train, tokens.eval] if side %}
<td class="r"><b>{{ side.truncated | n }}</b><small>{{ side.truncated | of(side.rows) }}</small></td>{% endfor %}</tr>
</tbody></table></div>
{% if tokens.longest %}
<table><caption>{{ t("Longest rows", "最长的行") }}</caption>
{{ heads([("tokens", "token 数", "r fit"), ("question", "问题", ""), ("split", "划分", "fit")]) }}
<tbody>{% for item in tokens.longest[:5] %}
<tr><td class="r">{{ item.tokens | n }}</td><td>{{ data(item.question, 90) }}</td>
<td class="fit">{{ sides[item.split] }}</td></tr>
{% endfor %}
</tbody></table>
{% endif %}
{% endif %}
<div class="two">
{% for name, label in [("question", t("Rows by characters of the question", "按问题字数统计的行数")),
 ("answer", t("Rows by characters of the answer", "按回答字数统计的行数"))] if characters[name] %}
<figure>{{ histogram("Rows by characters · 按字数", characters[name]) }}<figcaption>{{ label }}</figcaption></figure>
{% endfor %}
</div>
</div></section>

{{ open("examples", "Example rows", "示例") }}
{% if examples %}
<table>{{ heads([("question", "问题", "half"), ("answer", "回答", "half")]) }}
<tbody>{% for row in examples[:6] %}
<tr><td>{{ data(row.instruction, 160) }}
{% if row.split == "eval" %}<span class="tag">{{ sides.eval }}</span>{% endif %}</td>
<td>{{ data(row.output, 160) }}</td></tr>
{% endfor %}
</tbody></table>
{% else %}<p>{{ t("None.", "没有。") }}</p>{% endif %}
</div></section>
</main>
<footer>{{ t("Made from report.json. This page runs no script and loads nothing; … marks where an excerpt is cut.",
 "由 report.json 生成。本页不运行脚本，也不加载任何内容；… 表示片段在此截短。") }}</footer>
</body>
</html>
"""
)
