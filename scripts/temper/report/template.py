"""The report's template. It is a string, since the images' digest covers *.py; t(en, zh) picks the language."""

from temper.page import HEAD

STYLE = """\
.good,.better,.held{color:var(--good)}.bad,.worse,.missed{color:var(--out)}
.better,.worse,.undecided,.counted,.unmeasured{white-space:nowrap}.undecided,.counted,.unmeasured{color:var(--soft)}
.gate{display:grid;grid-template-columns:1fr 1fr;gap:0 1.6rem;margin:1.1rem 0}
.gate li{padding:.6rem 0;border-top:3px solid var(--soft);line-height:1.4}
.gate .held{border-color:var(--good)}.gate .missed{border-color:var(--out)}
.gate span{color:var(--ink)}.gate strong{display:block;font-size:1.6rem;line-height:1.3;color:var(--ink)}
header p+p{margin-top:.5rem}
.gate b,td b{font-weight:650}
figure+table,table+table{margin-top:1.5rem}caption{padding-bottom:.3rem}caption b{color:var(--ink)}
.tag{white-space:normal}.sets{table-layout:fixed}.sets th{width:11%}.sets th:first-child{width:25%}
.sets th.bar{width:27%}.sets th:last-child{width:15%}.bar svg{margin-top:.3rem}
.bar .better{fill:var(--good)}.bar .worse{fill:var(--out)}
.bar .counted{fill:var(--soft)}
.bar svg *{shape-rendering:crispEdges}
.tell{display:grid;grid-template-columns:repeat(auto-fill,minmax(9rem,1fr));gap:.75rem 1.5rem}
.tell dd{font-weight:650}.tell dd small{display:block;font-weight:400}
article{padding-top:.75rem;border-top:1px solid var(--line)}article+article{margin-top:1.25rem}
article:first-child{padding:0;border:0}
h3{margin:0;font-size:1rem}h4{margin:0 0 .2rem;font-size:.87rem;font-weight:400;color:var(--soft)}
article>p{margin-top:.3rem}.pair{display:grid;grid-template-columns:repeat(2,minmax(0,1fr));gap:0 1.5rem;margin:.6rem 0}
.pair>div{padding:.5rem .75rem;background:var(--wash);border-radius:4px}
pre{margin:0;white-space:pre-wrap;overflow-wrap:anywhere;font:.87em/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,
 "Noto Sans Mono CJK SC",monospace;tab-size:4}
.line{fill:none;stroke:currentColor;stroke-width:2;vector-effect:non-scaling-stroke}.eval.line{stroke-dasharray:6 4}
.plot{padding:.5rem .5rem 2.6rem 3.6rem}.plot .grid{stroke:var(--line)}
.set td:first-child{width:35%}.digests code{font-size:.78rem}.digests td:last-child{width:52%}
.all{user-select:all;-webkit-user-select:all}
@media screen and (max-width:44rem){.gate{gap:0 1rem}.gate strong{font-size:1.3rem}.gate li{font-size:.87rem}
 .pair{grid-template-columns:minmax(0,1fr);gap:.5rem}.tell{grid-template-columns:1fr 1fr}
 .stack thead{display:none}.stack,.stack tbody,.stack caption{display:block}
 .stack tr{display:grid;grid-template-columns:repeat(3,minmax(0,1fr));gap:.2rem .75rem;padding:.6rem 0;
 border-bottom:1px solid var(--line)}
 .stack td,.stack th{display:block;width:auto;padding:0;border:0;text-align:left;white-space:normal;font-size:1rem;
 color:var(--ink)}
 .stack td::before{content:attr(data-h);display:block;font-size:.8rem;color:var(--soft)}
 .stack .whole{grid-column:1/-1}}
@media print{.pair{margin:.3rem 0}h2,h3,h4,caption{break-after:avoid}
 article{break-inside:avoid}section:not(.long){break-inside:avoid}.gate{margin:.5rem 0}}
"""

TITLE = """\
<title>{{ t("Model report", "模型报告") }} · {{ scenario | clip(60) }} · {{ profile | clip(60) }}</title>
<style>
{{ style | safe }}"""

BODY = """\
</style>
</head>
<body>
{% macro open(id, en, zh, kind="") %}
<section id="{{ id }}"{% if kind %} class="{{ kind }}"{% endif %}><h2>{{ t(en, zh) }}</h2><div>
{% endmacro %}
{% macro quote(text, limit=120) %}<bdi>{{ text | string | clip(limit) }}</bdi>{% endmacro %}
{% macro name_of(key, names) %}{% if key in names %}{{ named(key, names) }}{% else %}{{ quote(key, 60) }}{% endif %}
{% endmacro %}
{% macro heads(names, kinds) %}<thead><tr>
{% for name in names %}<th class="{{ kinds[loop.index0] }}">{{ name }}</th>{% endfor %}</tr></thead>{% endmacro %}
{% macro unit(value, en, zh=None) %}{{ unknown if value is none else value | n ~ " " ~ t(en, zh or en) }}{% endmacro %}
{% macro tell(label, value, small="") %}
<div><dt>{{ label }}</dt><dd>{{ value }}{% if small %}<small>{{ small }}</small>{% endif %}</dd></div>
{% endmacro %}
{% macro said(text) %}
{% if text is none %}<p>{{ unknown }}</p>
{% elif not text.strip() %}<p class="soft">{{ t("(an empty answer)", "（空回答）") }}</p>
{% elif text | code %}<pre><bdi>{{ text | excerpt }}</bdi></pre>
{% else %}<p><bdi>{{ text | excerpt }}</bdi></p>{% endif %}
{% endmacro %}
{% set outcomes = {"better": t("▲ better", "▲ 变好"), "worse": t("▼ worse", "▼ 变差"),
 "undecided": t("◇ undecided", "◇ 无法断定"), "counted": t("· only counted", "· 仅计数"),
 "unmeasured": "– " ~ unknown} %}
{% set models = {"base": t("base", "原模型"), "tuned": t("tuned", "微调后")} %}
{% set about = {"gain": t("Gain in the score, tuned less base", "得分提升（微调后减原模型）"),
 "retention_loss": t("Score lost on the retention set", "遗忘检查集上失去的得分")} %}
<header>
<h1>{{ t("Model report", "模型报告") }} · {{ quote(scenario, 60) }} · {{ quote(profile, 60) }}</h1>
{% if verdict.passed %}
<p class="lede good">{{ t("✓ Passed: the tuned model meets the gate's limits",
 "✓ 通过：微调后的模型满足门槛") }}</p>
{% else %}
<p class="lede bad">{{ t("✗ Failed: the tuned model does not meet the gate's limits",
 "✗ 未通过：微调后的模型不满足门槛") }}</p>
{% endif %}
<ul class="gate">
{% for item in gate %}
<li class="{{ {true: "held", false: "missed"}.get(item.held, "") }}"><span>{{ about[item.name] }}</span>
<strong>{{ item.value | num(item.limit or 0, sign=item.name == "gain") }}</strong><span>
{% if item.name == "gain" %}{{ t("95% interval {} to {}; its lower end must be above {}: ",
 "95% 区间 {} 至 {}；下限须高于 {}：", verdict.gain_low | num(item.limit or 0, sign=true),
 verdict.gain_high | num(sign=true), item.limit | n) }}
{% else %}{{ t("at most {} allowed: ", "最多允许 {}：", item.limit | n) }}{% endif %}</span>
<b>{{ {true: t("✓ met", "✓ 满足"), false: t("✗ not met", "✗ 不满足")}.get(item.held, "– " ~ unknown) }}</b></li>
{% endfor %}
</ul>
{% if not verdict.passed %}
<p><b>{{ t("Why it failed: ", "未通过的原因：") }}</b>
{%- for item in gate if item.held is false %}
{% if item.name == "gain" %}{{ t("the gain is surely {} only, not above the {} wanted (eval.min_gain). ",
 "提升的下限只有 {}，没有高于要求的 {}（eval.min_gain）。",
 item.compared | num(item.limit, sign=true), item.limit | n) }}
{% else %}{{ t("{} of the retention score is lost, more than the {} allowed (eval.max_retention_loss). ",
 "遗忘检查集失去 {}，超过允许的 {}（eval.max_retention_loss）。", item.compared | num(item.limit), item.limit | n) }}
{% endif %}
{% else %}{{ quote((verdict.why or []) | join("; "), 400) }}
{% endfor %}</p>
{% elif verdict.gain_low is not none and verdict.gain_low <= 0 %}
<p><b>{{ t("No improvement is shown: ", "未能证明有提升：") }}</b>
{{- t("the interval of the gain holds 0, which eval.min_gain allows.",
 "提升的区间包含 0，而 eval.min_gain 允许如此。") }}
</p>
{% endif %}
<p>{{ t("An answer scores 1 if it holds what its row calls right (facts, a number with its unit, unit tests passed, "
 "a refusal, an obeyed instruction), else 0, and its ROUGE-L with the row's answer where the row names none of these; "
 "the gain is the mean over rows held out and checks.",
 "回答符合该行的要求（事实、带单位的数值、通过单元测试、拒答、遵从指令）得 1 分，否则得 0 分；"
 "该行没有这类要求时，得分为它与参考回答的 ROUGE-L。提升按留出的行与检查集取平均。") }}</p>
<p class="soft">{% if description %}{{ quote(description, 300) }} {% endif %}
{{ t("Base model: ", "原模型：") }}{{ quote(model.name, 80) }} ·
{{ t("parameters: {}", "参数：{}", model.parameters | n) }} ·
{{ t("licence: ", "许可证：") }}
{%- if model.licence %}{{ quote(model.licence, 80) }}{% else %}{{ unknown }}{% endif %}</p>
</header>
<main>
{{ open("compared", "Base against tuned", "原模型与微调后", "long") }}
{% set columns = [t("metric", "指标"), models.base, models.tuned, t("difference", "差值"),
 t("its 95% interval, around 0", "差值的 95% 区间（中线为 0）"), t("the tuned model is", "微调后")] %}
{% for set, found in judged.items() %}
<table class="stack sets"><caption><b>{{ name_of(set, set_names) }}</b> ·
 {{ t("{:,} questions", "{:,} 个问题", sets[set].cases) }}</caption>
{{ heads(columns, ["", "r", "r", "r", "bar", ""]) }}
<tbody>{% for metric in found %}
<tr><td class="whole">{% if metric.name in metrics %}{{ named(metric.name, metrics) }}
{% endif %}<small><code><bdi>{{ metric.name | clip(60) }}</bdi></code>
{% if metric.cases != sets[set].cases %} {{ t("({:,} questions)", "（{:,} 个问题）", metric.cases) }}{% endif %}
{% if metric.better == "lower" %} {{ t("(lower is better)", "（越低越好）") }}{% endif %}</small></td>
<td class="r" data-h="{{ columns[1] }}">{{ metric.base | num }}</td>
<td class="r" data-h="{{ columns[2] }}">{{ metric.tuned | num }}</td>
<td class="r" data-h="{{ columns[3] }}">{{ metric.difference | num(sign=true) }}</td>
<td class="bar whole" data-h="{{ columns[4] }}">{% if metric.bar %}
{{ t("{} to {}", "{} 至 {}", metric.low | num(sign=true), metric.high | num(sign=true)) }}
<svg height="14" class="{{ metric.outcome }}" aria-hidden="true"><rect y="6.5" width="100%" height="1" opacity=".25"/>
<rect x="{{ metric.bar.x }}%" y="4" width="{{ metric.bar.width }}%" height="6" opacity=".4"/>
<rect x="{{ metric.bar.middle }}%" y="1" width="3" height="12" style="transform:translateX(-1.5px)"/>
<rect x="50%" width="1" height="14" style="fill:var(--ink)"/></svg>
{% else %}{{ unknown }}{% endif %}</td>
<td class="whole" data-h="{{ columns[5] }}"><b class="{{ metric.outcome }}">{{ outcomes[metric.outcome] }}</b></td></tr>
{% endfor %}</tbody></table>
{% else %}<p>{{ unknown }}</p>
{% endfor %}
{% if judged %}
<p class="soft">{{ t("Better and worse are said only where the interval (paired bootstrap over the questions) leaves "
 "out 0. Shares from 0 to 1 have bars on one scale within a table, any other metric on its own.",
 "只有当区间（按问题配对的自助法）不含 0 时，才判为变好或变差。"
 "同一张表中，0 到 1 的指标用同一刻度画线，其余各用各的刻度。") }}</p>
{% endif %}
</div></section>

{{ open("worse", "What got worse", "变差的地方") }}
<p>{{ about.retention_loss }}{{ t(": ", "：") }}
{{- verdict.retention_loss | num(verdict.max_retention_loss or 0) }}
{%- if kept %}{{ t(" (base {}, tuned {}; the interval of the change: {} to {})",
 "（原模型 {}，微调后 {}；变化的区间：{} 至 {}）", kept.base | num, kept.tuned | num, kept.low | num(sign=true),
 kept.high | num(sign=true)) }}{% endif %}</p>
<p>{% if worse %}{{ t("Surely worse: ", "可以断定变差：") }}
{%- for set, metric in worse %}
{{ name_of(set, set_names) }} · {{ name_of(metric.name, metrics) }} {{ metric.difference | num(sign=true) }}
{{- t("; ", "；") if not loop.last }}
{% endfor %}
{% elif judged %}{{ t("No metric of any set is surely worse.", "没有任何指标可以断定变差。") }}
{% else %}{{ unknown }}{% endif %}</p>
{% if groups %}
{% set columns = [t("retention questions", "遗忘检查集的问题"), t("language", "语言"), t("questions", "问题数"),
 models.base, models.tuned, t("change", "变化")] %}
<table class="stack">{{ heads(columns, ["", "", "r", "r", "r", "r"]) }}
<tbody>{% for group in groups %}{% set change = group.tuned - group.base %}
<tr><td data-h="{{ columns[0] }}">{{ name_of(group.kind, others) }}</td>
<td data-h="{{ columns[1] }}">{{ name_of(group.lang, others) }}</td>
<td class="r" data-h="{{ columns[2] }}">{{ group.cases | n }}</td>
<td class="r" data-h="{{ columns[3] }}">{{ group.base | num }}</td>
<td class="r" data-h="{{ columns[4] }}">{{ group.tuned | num }}</td>
<td class="r" data-h="{{ columns[5] }}">{{ change | num(sign=true) }}
<b class="{{ "worse" if change < 0 else "better" if change else "undecided" }}">
{{- t("▼ fewer right", "▼ 答对变少") if change < 0 else
 t("▲ more right", "▲ 答对变多") if change else t("= as before", "= 不变") }}</b></td></tr>
{% endfor %}</tbody></table>
{% else %}<p>{{ t("By kind and language: ", "按类别与语言：") }}{{ unknown }}</p>{% endif %}
</div></section>

{% macro answers(id, en, zh, items, which) %}
{{ open(id, en, zh, "long") }}
{% for item in items or [] %}
<article><h3><bdi>{{ item.question | clip(300) }}</bdi></h3>
<p class="soft"><span class="tag">{{ name_of(item.set, set_names) }}</span>
<code>{{ quote(item.id, 60) }}</code>
{{ t("right is: ", "正确：") }}{% if item.expected in others %}{{ named(item.expected, others) }}
{% else %}<bdi>{{ item.expected | clip(300) }}</bdi>{% endif %}</p>
<div class="pair">
{% for model, name in models.items() %}
<div><h4>{{ name }} · {{ item[model ~ "_score"] | num }}</h4>{{ said(item[model]) }}</div>
{% endfor %}
</div>
{% if item.why %}<p>{{ which }}{% if item.why in others %}{{ named(item.why, others) }}
{% else %}<bdi>{{ item.why | clip(300) }}</bdi>{% endif %}</p>{% endif %}</article>
{% else %}<p>{{ unknown if items is none else t("None.", "没有。") }}</p>
{% endfor %}
</div></section>
{% endmacro %}
{{ answers("improved", "Most improved answers", "进步最大的回答", improved,
 t("The base answer lacks: ", "原模型的回答缺少：")) }}
{{ answers("damaged", "Most damaged answers", "退步最大的回答", damaged,
 t("The tuned answer lacks: ", "微调后的回答缺少：")) }}

{{ open("loss", "Loss in training", "训练损失") }}
{% if curve %}
{% set sides = {"loss": ("train", t("rows trained on", "训练行")),
 "eval_loss": ("eval", t("rows held out", "留出的行"))} %}
<figure><div class="plot"><svg height="220" role="img"><title>
{%- for key, line in curve.lines.items() %}{{ sides[key][1] }}: {{ t("from {} at step {} to {} at step {}",
 "从 {}（第 {} 步）到 {}（第 {} 步）", line.first[1] | num, line.first[0],
 line.last[1] | num, line.last[0]) }}. {% endfor %}</title>
{% for y, tick in curve.y %}
<line x2="100%" y1="{{ y }}%" y2="{{ y }}%" class="grid"/><text x="-8" y="{{ y }}%" dy=".35em" text-anchor="end">
{{- tick }}</text>
{% endfor %}
{% for x, tick in curve.x %}<text x="{{ x }}%" y="100%" dy="1.5em" text-anchor="middle">{{ tick }}</text>
{% endfor %}
<text x="50%" y="100%" dy="3em" text-anchor="middle">{{ t("optimiser step", "优化步数") }}</text>
<text transform="translate(-44 110) rotate(-90)" text-anchor="middle">
{{- t("loss, nats a token", "损失（奈特/token）") }}</text>
<svg viewBox="0 0 1000 1000" preserveAspectRatio="none" width="100%" height="100%">
{% for key, line in curve.lines.items() %}
<polyline class="{{ sides[key][0] }} line" points="{% for x, y in line.path %}{{ x }},{{ y }} {% endfor %}"/>
{% endfor %}</svg>
{% for key, line in curve.lines.items() if line.path | length <= 60 %}{% for x, y in line.path %}
<circle class="{{ sides[key][0] }}" cx="{{ x / 10 }}%" cy="{{ y / 10 }}%" r="{{ 2.5 if key == "loss" else 4 }}"/>
{% endfor %}{% endfor %}
</svg></div>
<figcaption>{% for key, line in curve.lines.items() %}<b class="{{ sides[key][0] }}">
{{- "──" if key == "loss" else "╌╌" }} {{ sides[key][1] }}</b>{% endfor %}</figcaption></figure>
{% if "eval_loss" not in curve.lines %}
<p class="soft">{{ t("Loss of rows held out: not measured in training.", "留出行的损失：训练中未测量。") }}</p>
{% endif %}
{% else %}<p>{{ unknown }}</p>{% endif %}
</div></section>

{{ open("data", "Data", "数据") }}
<dl class="tell">
{% for key, label in [("read", t("rows read", "读入行数")), ("rejected", t("rejected", "剔除")),
 ("duplicates", t("merged as duplicates", "合并的重复")),
 ("conflicts", t("questions with different answers", "答案不一致的问题")),
 ("train", t("rows to train on", "用于训练")), ("eval", t("rows held out", "留出")),
 ("tokens", t("tokens in all", "token 总数"))] %}
{{ tell(label, data[key] | n) }}
{% endfor %}
</dl>
</div></section>

{{ open("cost", "Cost", "成本") }}
{% set joules, peak = training.energy_joules, training.peak_bytes %}
<dl class="tell">
{% for label, part in [(t("training", "训练用时"), training), (t("evaluation", "评测用时"), evaluation)] %}
{{ tell(label, unit(part.seconds, "s", "秒"), part.seconds | duration if part.seconds else "") }}
{% endfor %}
{{ tell(t("questions asked", "提问次数"), evaluation.asked | n) }}
{{ tell(t("tokens trained on", "训练 token 数"), training.tokens | n) }}
{{ tell(t("tokens per second", "每秒 token 数"), training.tokens_per_second | n) }}
{{ tell(t("peak memory", "内存峰值"), "%.2f GB" % (peak / 1e9) if peak else unknown,
 unit(peak, "bytes", "字节") if peak else "") }}
{{ tell(t("energy", "能耗"), t("not readable here", "本机无法读取") if joules is none else unit(joules, "J"),
 "" if joules is none else "%.2f Wh" % (joules / 3600)) }}
{{ tell(t("passes over the rows", "训练轮数"), training.epochs | n) }}
{{ tell(t("rows used, at most", "最多使用行数"), training.samples | n) }}
{{ tell(t("threads", "线程数"), training.threads | n) }}
{{ tell(t("device", "设备"), quote(training.device) if training.device else unknown) }}
</dl>
</div></section>

{{ open("latency", "Latency", "延迟") }}
{% if bench %}
{% set columns = [t("server", "服务"), t("users", "并发用户"), t("first token", "首个 token"),
 t("first token, 95%", "首个 token，95% 分位"), t("between tokens", "token 间隔"),
 t("tokens per second", "每秒 token 数")] %}
<table class="stack"><caption>{{ t("Under load, medians, by ", "负载下的中位数，来自 ") }}
<code>make bench</code></caption>
{{ heads(columns, ["", "r", "r", "r", "r", "r"]) }}
<tbody>{% for row in bench %}
<tr><td class="whole">{{ quote(row.server) }}</td>
{% for value in [row.users | n, unit(row.first_token_s, "s", "秒"), unit(row.first_token_p95_s, "s", "秒"),
 unit(row.gap_ms, "ms", "毫秒"), row.tokens_per_second | n] %}
<td class="r" data-h="{{ columns[loop.index] }}">{{ value }}</td>
{% endfor %}</tr>
{% endfor %}</tbody></table>
{% else %}
<p>{{ t("Under load: not measured. To measure it: ", "负载下：未测量。测量命令：") }}<code>make bench</code></p>
{% endif %}
{% set columns = [t("model", "模型"), t("an answer, median", "回答耗时，中位数"),
 t("an answer, 95%", "回答耗时，95% 分位"),
 t("tokens per second", "每秒 token 数")] %}
<table class="stack"><caption>{{ t("Seen during evaluation", "评测时所见") }}</caption>
{{ heads(columns, ["", "r", "r", "r"]) }}
<tbody>{% for model, name in models.items() %}{% set seen = latency[model] %}
<tr><td class="whole">{{ name }}</td>
{% for value in [unit(seen.median_s, "s", "秒"), unit(seen.p95_s, "s", "秒"), seen.tokens_per_second | n] %}
<td class="r" data-h="{{ columns[loop.index] }}">{{ value }}</td>
{% endfor %}</tr>
{% endfor %}</tbody></table>
</div></section>

{{ open("provenance", "Provenance", "来源", "long") }}
<p>{{ t("Make this page again: ", "重新生成本页：") }}
<code class="all">make report SCENARIO={{ scenario | clip(60) }} PROFILE={{ profile | clip(60) }}</code></p>
{% if provenance %}
{% set stages = {"model": t("base model", "原模型"), "data": t("data", "数据"), "train": t("adapter", "适配器"),
 "merge": t("merged model", "合并后的模型"), "eval": t("evaluation", "评测")} %}
<table class="digests">
{{ heads([t("of", "所属"), t("what", "内容"), t("bytes", "字节"), "SHA-256"], ["", "", "r", ""]) }}
<tbody>{% for row in provenance %}
<tr><td>{% if row.stage in stages %}{{ stages[row.stage] }}{% else %}{{ quote(row.stage, 60) }}{% endif %}</td>
<td>{{ quote(row.what) }}</td><td class="r">{{ row.size | n }}</td>
<td><code class="all">{{ row.sha256 }}</code></td></tr>
{% endfor %}</tbody></table>
{% else %}<p>{{ t("Digests: ", "摘要：") }}{{ unknown }}</p>{% endif %}
{% for name, values in [(t("Versions", "版本"), versions), (t("Settings", "设置"), settings)] %}
{% if values %}
<table class="set"><caption>{{ name }}</caption><tbody>
{% for key, value in values.items() %}
<tr><td><code>{{ quote(key, 80) }}</code></td><td>{{ quote(value, 400) }}</td></tr>
{% endfor %}</tbody></table>
{% else %}<p>{{ name }}{{ t(": ", "：") }}{{ unknown }}</p>{% endif %}
{% endfor %}
</div></section>
</main>
<footer>{{ t("Made from metrics.json. This page runs no script and loads nothing; … marks where an excerpt is cut.",
 "由 metrics.json 生成。本页不运行脚本，也不加载任何内容；… 表示片段在此截短。") }}</footer>
</body>
</html>
"""

TEMPLATE = HEAD + TITLE + STYLE + BODY
