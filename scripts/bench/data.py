#!/usr/bin/env python3
"""Time the data stage beside its peers on the same rows: seconds, CPU seconds, peak memory, every row.

    make bench-data                        1,000,000 rows of 314 MB, made once in build/bench-data
    make bench-data BENCH='--only core'    without the run of all steps
    make bench-data BENCH='--rows 20000'   to try it out; no target is judged
    make bench-data BENCH='--only memory --rows 10000000'    whether memory grows with the rows; half an hour

The core is what all can do (scripts/bench/data_peers.py); the whole adds our checks, near-duplicates, personal data,
token counts and the report. Each runs in a process of its own on two cores, after a short run that loads its files;
of the core three times, of which the least seconds and the highest peak count.
Exit code 1 when a target is missed, or when the rows kept are not the same.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import random
import resource
import shutil
import subprocess
import sys
import threading
import unicodedata
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import orjson
import xxhash

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import graph
from bench.data_peers import IN_BENCH_ENV, PEERS

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build" / "bench-data"
MODEL = ROOT / "build" / "models" / "smollm2-135m"
PROCESSOR = ROOT / "scripts" / "llamafactory" / "data_processor.py"
ROWS, WARM, CORES, TIMES = 1_000_000, 20_000, 2, 3
CORE_STEPS = "read,normalise,exact,split,write"
CORE_PEAK, WHOLE_SECONDS, WHOLE_PEAK, GROWTH = 300e6, 180.0, 1.5e9, 1.15  # the most that is promised; bytes
EVERY = 0.25  # seconds between two looks at the memory
PR_SET_CHILD_SUBREAPER = 36
# A virtual machine may hand memory that is free back to its host, and pay when it is used again: not in what is timed.
CLAIM = "bytearray(b'.') * (2 << 30)"
SEED = 2026

ENGLISH_WORDS = """
account address agreement airport amount analysis answer application appointment approval article balance bank battery
before behaviour between billing board branch budget button calendar camera cancel capital careful category
certificate change channel charge choose claim clause client code colour column compare complete condition confirm
connection contract copy correct cost country courier credit currency customer damage date deadline delay deliver
department deposit describe design device discount document download driver during earlier effect electric employee
engine enough estimate evening example exchange expect expense explain export factory failure feature figure filter
finance finish follow foreign format forward function further garden general grant group growth guarantee handle
health history holiday hospital however import improve include income increase industry inform install insurance
interest invoice island journey keyboard kitchen language later law leave letter level library limit list loan local
logistics maintain manager manual market material measure medicine member memory message method minute mobile model
money month morning mortgage museum network notice number object offer office online open operate option order
original output owner package paper part password payment pension people percent period permit person phone plan
platform policy position possible power prepare present price print private problem process product profit project
promise protect provide public purchase quality quarter question quickly rate reason receipt record reduce refund
region register regular remove repair replace report request require reserve result return review right river risk
road room safety salary sample save schedule school screen search season section security select seller send serial
service settle several share ship shop sign simple single size software solution source space special speed standard
start station status step stock store street student subject submit summary supply support surface system table target
tax teacher technical telephone ticket time title together total track trade traffic train transfer travel update
upload valid value vehicle version visit voucher warehouse warranty water website week weight window winter without
word worker write year yesterday café naïve résumé façade Zürich the the the of of to to a a in in is is for for on
with and and how can I when what does my your it if not
"""
CHINESE_WORDS = """
账户 地址 合同 机场 金额 分析 回答 申请 预约 审批 文章 余额 银行 电池 以前 行为 之间 账单 董事 分行 预算 按钮 日历
相机 取消 资本 小心 类别 证书 变更 渠道 费用 选择 理赔 条款 客户 代码 颜色 比较 完成 条件 确认 连接 签订 复制 正确
成本 国家 快递 信用 货币 顾客 损坏 日期 截止 延迟 配送 部门 押金 描述 设计 设备 折扣 文件 下载 司机 期间 提前 效果
电子 员工 发动 足够 估计 晚上 例如 交换 预计 支出 说明 出口 工厂 失败 功能 数字 筛选 财务 结束 跟踪 外国 格式 转发
进一步 花园 一般 授权 小组 增长 保证 处理 健康 历史 假期 医院 但是 进口 改善 包括 收入 增加 行业 通知 安装 保险 利息
发票 岛屿 旅程 键盘 厨房 语言 以后 法律 离开 信件 等级 图书 限制 清单 贷款 本地 物流 维护 经理 手册 市场 材料 测量
药品 会员 内存 消息 方法 分钟 手机 模型 资金 月份 早上 房贷 博物馆 网络 公告 号码 对象 报价 办公 在线 打开 操作 选项
订单 原来 输出 业主 包裹 纸张 部分 密码 付款 养老 人们 百分比 周期 许可 个人 电话 计划 平台 政策 位置 可能 电力 准备
目前 价格 打印 隐私 问题 流程 产品 利润 项目 承诺 保护 提供 公共 购买 质量 季度 请问 尽快 利率 原因 收据 记录 减少
退款 地区 注册 定期 移除 维修 更换 报告 请求 要求 预留 结果 退货 审核 权利 河流 风险 道路 房间 安全 工资 样品 保存
日程 学校 屏幕 搜索 季节 章程 安保 挑选 卖家 发送 序列 服务 结算 若干 分享 船运 商店 签名 简单 单独 尺寸 软件 方案
来源 空间 特别 速度 标准 开始 车站 状态 步骤 库存 商场 街道 学生 主题 提交 摘要 供应 支持 表面 系统 表格 目标 税务
老师 技术 热线 车票 时间 标题 一起 合计 轨道 贸易 交通 列车 转账 旅行 更新 上传 有效 价值 车辆 版本 访问 优惠券 仓库
保修 用水 网站 星期 重量 窗口 冬天 没有 词语 工人 填写 年度 昨天 的 的 的 的 了 在 是 我 您 和 需要 可以 如何 怎么
为什么 如果 应该 已经 我们 联系 查询 办理 方式 以及 之后 不能 请在
"""
ENGLISH, CHINESE = ENGLISH_WORDS.split(), CHINESE_WORDS.split()
PLAIN, DUPLICATE, MALFORMED, NEAR, PERSONAL = range(5)
SHARES = ((0.10, DUPLICATE), (0.11, MALFORMED), (0.13, NEAR), (0.135, PERSONAL), (1.0, PLAIN))


class Rows:
    """Rows by their number: each is a function of its number alone, so that an earlier one can be made again."""

    def __init__(self) -> None:
        self.random = random.Random()

    def kind(self, number: int) -> int:
        """Begin row `number` and return what it is."""
        self.random.seed(SEED << 40 | number)
        drawn = self.random.random()
        return next(kind for limit, kind in SHARES if drawn < limit) if number >= 100 else PLAIN

    def text(self, chinese: bool, characters: float, mark: str) -> str:
        """Return sentences of about so many characters; the last ends in a mark."""
        draw = self.random
        words = draw.choices(CHINESE, k=round(characters / 2.1)) if chinese else []
        words = words or draw.choices(ENGLISH, k=max(2, round(characters / 6.3)))
        if draw.random() < 0.3:
            words[draw.randrange(len(words))] = str(draw.choice((draw.randrange(2, 999), draw.randrange(1990, 2030))))
        found, at = "", 0
        while at < len(words):
            end = at + draw.randrange(7, 16)
            part = ("" if chinese else " ").join(words[at:end])
            if chinese:
                found += part + ("" if end >= len(words) else draw.choice("，，。；"))
            else:
                found += part[0].upper() + part[1:] + ("" if end >= len(words) else draw.choice((". ", ". ", ", ")))
            at = end
        return found + mark

    def talk(self, kind: int) -> tuple[str, str]:
        """Return question and answer of the row that is begun."""
        draw = self.random
        chinese, total = draw.random() < 0.5, 75 + 325 * draw.random() ** 3.4
        asked = total * draw.uniform(0.35, 0.5)
        question = self.text(chinese, asked, "？" if chinese else "?")
        answer = self.text(chinese, total - asked, "。" if chinese else ".")
        if kind == PERSONAL:
            answer += self.personal(chinese)
        if draw.random() < 0.08:
            at = draw.randrange(len(answer))
            answer = (
                answer[:at] + draw.choice(("\n", "\n", "\n", "\n\n", "\r\n", ' "quoted" ', ' "', ", ")) + answer[at:]
            )
        return self.surface(question, 0.03), self.surface(answer, 0.03)

    def personal(self, chinese: bool) -> str:
        """Return an invented address, mobile number or identity number."""
        draw = self.random
        number = f"{draw.choice((110101, 310104, 440305))}19{draw.randrange(60, 99)}0{draw.randrange(1, 9)}1"
        number += f"{draw.randrange(9)}{draw.randrange(1000):03}"
        weights = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
        number += "10X98765432"[sum(int(digit) * weight for digit, weight in zip(number, weights, strict=True)) % 11]
        kinds = (
            ("邮箱 ", "e-mail ", f"{draw.choice(ENGLISH[:200])}{draw.randrange(1000)}@no-such-company.cn"),
            ("手机 ", "mobile ", f"1{draw.choice((38, 59, 86))}{draw.randrange(10**8):08}"),
            ("身份证 ", "identity number ", number),
        )
        in_chinese, in_english, found = draw.choice(kinds)
        return f" {in_chinese if chinese else in_english}{found}"

    def surface(self, text: str, share: float) -> str:
        """Change what normalising takes back, in a share of the cases: blanks around, line ends, composition."""
        draw = self.random
        if draw.random() >= share:
            return text
        text = draw.choice((f" {text}", f"{text}  ", f"\t{text}", f"{text}\n", text.replace("\n", "\r\n"), f" {text} "))
        return unicodedata.normalize("NFD", text) if draw.random() < 0.5 else text

    def vary(self, text: str) -> str:
        """Return a near-duplicate: other punctuation, other width, or one character changed."""
        draw = self.random
        how = draw.randrange(4)
        if how == 0:
            return text.replace("？", "?").replace("，", ",") if "？" in text else text.replace("?", "？")
        if how == 1:
            return "".join(chr(ord(one) + 0xFEE0) if one in "0123456789,.?" else one for one in text)
        at = draw.randrange(len(text))
        return text[:at] + ("" if how == 2 else draw.choice("的了eas")) + text[at + 1 :]

    def line(self, number: int) -> str:
        """Return row `number` as it is written."""
        draw, kind = self.random, self.kind(number)
        if kind in (DUPLICATE, NEAR):
            pick = random.Random(number)
            while (its := self.kind(pick.randrange(number))) not in (PLAIN, PERSONAL):
                pass
            question, answer = self.talk(its)
            if kind == DUPLICATE:
                question, answer = self.surface(question, 0.1), self.surface(answer, 0.1)
            else:
                question = self.vary(question)
        else:
            question, answer = self.talk(kind)
        fields = [str(number + 1), question, answer]
        if kind == MALFORMED:
            how = draw.randrange(6)
            fields = (fields[:2], fields[:1], [*fields, "more"], [*fields, "more", "1"], [*fields[:2], ""], [*fields])[
                how
            ]
            if how == 5:
                fields[draw.randrange(1, 3)] = draw.choice((" ", "\n"))
        return ",".join(map(quoted, fields)) + "\n"


def quoted(field: str) -> str:
    """Return a field as CSV holds it."""
    if '"' in field or "," in field or "\n" in field or "\r" in field:
        return '"' + field.replace('"', '""') + '"'
    return field


def lines(rows: int) -> Iterator[str]:
    """Yield the header and so many rows."""
    yield "id,question,answer\n"
    made = Rows()
    yield from map(made.line, range(rows))


def generate(rows: int) -> Path:
    """Return the CSV file of so many rows, written if it is not there."""
    path = FOLDER / f"rows-{rows}.csv"
    if not path.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        started, part = perf_counter(), path.with_suffix(".part")
        with open(part, "w", encoding="utf-8", newline="", buffering=1 << 20) as file:
            file.writelines(lines(rows))
        part.rename(path)
        print(f"wrote {path} ({path.stat().st_size / 1e6:.0f} MB) in {perf_counter() - started:.0f} s", file=sys.stderr)
    return path


class Run(NamedTuple):
    """What one run took and left."""

    wall: float
    cpu: float  # seconds of all its processes
    peak: int  # bytes, the sum of its processes' PSS
    rejected: int
    kept: int
    digest: int  # of the rows kept, whatever their order and side


def processes(process: int) -> Iterator[int]:
    """Yield all processes below one."""
    for file in Path(f"/proc/{process}/task").glob("*/children"):
        with suppress(OSError):
            for child in map(int, file.read_text().split()):
                yield child
                yield from processes(child)


def memory() -> int:
    """Return the bytes that all processes below this one hold, shared ones counted once."""
    total = 0
    for process in processes(os.getpid()):
        with suppress(OSError), open(f"/proc/{process}/smaps_rollup") as file:
            total += sum(int(line.split()[1]) * 1024 for line in file if line.startswith("Pss:"))
    return total


def measured(argv: list[str], log: Path) -> tuple[float, float, int]:
    """Run a command on two cores; return wall seconds, CPU seconds and peak bytes. SystemExit when it fails."""
    peak, ended = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not ended.wait(EVERY):
            peak = max(peak, memory())

    subprocess.run([sys.executable, "-c", CLAIM], check=True)
    cores = sorted(os.sched_getaffinity(0))[:CORES]
    kept = {key: value for key, value in os.environ.items() if key not in graph.NOT_OURS}
    os.sync()  # what the one before wrote is not this one's to wait for
    watcher, before = threading.Thread(target=watch), resource.getrusage(resource.RUSAGE_CHILDREN)
    with open(log, "wb") as out:
        started = perf_counter()
        process = subprocess.Popen(
            argv, env=kept, stdout=out, stderr=subprocess.STDOUT, preexec_fn=lambda: os.sched_setaffinity(0, cores)
        )
        watcher.start()
        try:
            process.wait()
            seconds = perf_counter() - started
        finally:
            ended.set()
            watcher.join()
    with suppress(ChildProcessError):
        while True:  # those it left behind are ours since PR_SET_CHILD_SUBREAPER
            os.wait()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if process.returncode:
        said = log.read_text(errors="replace")[-2000:]
        sys.exit(f"{' '.join(argv[:4])} … ended with code {process.returncode}:\n{said}")
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, peak


def kept_rows(folder: Path) -> tuple[int, int]:
    """Return number and digest of the rows of train.jsonl and eval.jsonl."""
    count = digest = 0
    for name in ("train", "eval"):
        with open(folder / f"{name}.jsonl", "rb") as file:
            for line in file:
                row = orjson.loads(line)
                fields = [row["instruction"], row["input"], row["output"], row["system"]]
                count, digest = count + 1, digest + xxhash.xxh3_64_intdigest(orjson.dumps(fields))
    return count, digest % 2**64


def command(name: str, source: Path, out: Path) -> list[str]:
    """Return the command line of ours or of a peer."""
    ours = [str(ROOT / ".venv/bin/python"), str(PROCESSOR), "--input", str(source), "--output", str(out)]
    ours += ["--instruction_col", "question", "--output_col", "answer", "--max_rejected", "0.05"]
    if name == "Temper":
        return [*ours, "--steps", CORE_STEPS]
    if name == "Temper, whole":
        return [*ours, "--model", str(MODEL)]
    environment = graph.ENVIRONMENT if name in IN_BENCH_ENV else ROOT / ".venv"
    return [str(environment / "bin" / "python"), str(ROOT / "scripts/bench/data_peers.py"), name, str(source), str(out)]


def once(name: str, source: Path, out: Path) -> tuple[float, float, int]:
    """Run ours or a peer on a file that is in the cache; return wall seconds, CPU seconds and peak bytes."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    with open(source, "rb", buffering=0) as file:
        while file.read(1 << 22):
            pass
    return measured(command(name, source, out), out.with_suffix(".log"))


def run(name: str, source: Path, keep: bool, times: int = 1) -> Run:
    """Run ours or a peer so many times after a short run; return the least seconds and the highest peak."""
    out = FOLDER / "out" / name.replace(", ", "-").replace(" ", "-")
    once(name, generate(WARM), out)
    walls, cpus, peaks = zip(*(once(name, source, out) for _ in range(times)), strict=True)
    log = out.with_suffix(".log")
    if name in PEERS:
        rejected = int(log.read_text().split()[-1])
    else:
        with open(out / "rejected.jsonl", "rb") as file:
            rejected = sum(1 for _ in file)
    found = Run(min(walls), min(cpus), max(peaks), rejected, *kept_rows(out))
    if not keep:
        shutil.rmtree(out)
        log.unlink()
    seconds = f"{found.wall:.1f} s, {found.cpu:.1f} CPU s (most {max(cpus):.1f})"
    print(f"{name}: {seconds}, {found.peak / 1e6:.0f} MB", file=sys.stderr, flush=True)
    return found


def table(runs: dict[str, Run]) -> str:
    """Return the measurements, those of the core with their ratio to the best peer's."""
    best = [min(run[at] for name, run in runs.items() if name in PEERS) if len(runs) > 1 else 0 for at in range(3)]
    first = "(times the best peer)" if len(runs) > 1 else ""
    lines = [f"{first:<22}{'wall s':>16}{'CPU s':>16}{'peak MB':>16}{'left out':>10}{'kept':>10}"]
    for name, one in runs.items():
        line = f"{name:<22}"
        for at, (unit, digits) in enumerate(((1, 2), (1, 2), (1e6, 0))):
            ratio = f" ({one[at] / best[at]:.2f})" if best[at] else ""
            line += f"{one[at] / unit:.{digits}f}{ratio}".rjust(16)
        lines.append(f"{line}{one.rejected:>10}{one.kept:>10}")
    return "\n".join(lines)


def same(runs: dict[str, Run]) -> bool:
    """Say whether all kept the same rows, and who did not."""
    right, agreed = runs["csv + orjson"], True
    for name, one in runs.items():
        if (one.kept, one.digest, one.rejected) != (right.kept, right.digest, right.rejected):
            agreed = False
            print(
                f"{name} keeps {one.kept - right.kept:+} rows, leaves out {one.rejected - right.rejected:+},", end=" "
            )
            print("and the rows differ" if one.digest != right.digest else "and the rows are the same")
    if agreed:
        print("all keep the same rows")
    return agreed


def target(what: str, value: float, most: float, unit: str, judged: bool) -> bool:
    """Print a promise; return False when it is missed."""
    met = value <= most
    verdict = ("met" if met else "MISSED") if judged else "not judged at this size"
    print(f"{what}: {value:.2f}{unit} (target: at most {most:.2f}{unit}: {verdict})")
    return met or not judged


def core(rows: int, keep: bool) -> bool:
    """Compare the core with the peers; return whether its targets hold."""
    graph.peers_environment()
    source = generate(rows)
    runs = {name: run(name, source, keep, TIMES) for name in ("Temper", *PEERS)}
    ours, best = runs["Temper"], min(PEERS, key=lambda name: runs[name].cpu)
    print(f"\n{table(runs)}\n")
    agreed, judged = same(runs), rows == ROWS
    cpu = target(f"core, CPU seconds over those of {best}", ours.cpu / runs[best].cpu, 1, "", judged)
    return target("core, peak", ours.peak / 1e6, CORE_PEAK / 1e6, " MB", judged) and cpu and agreed


def whole(rows: int, keep: bool) -> bool:
    """Measure all steps; return whether their targets hold."""
    ours = run("Temper, whole", generate(rows), keep)
    print(f"\n{table({'Temper, whole': ours})}\n")
    wall = target("whole, wall", ours.wall, WHOLE_SECONDS, " s", rows == ROWS)
    return target("whole, peak", ours.peak / 1e6, WHOLE_PEAK / 1e6, " MB", rows == ROWS) and wall


def growth(rows: int, keep: bool) -> bool:
    """Compare the peak of all steps with that on a tenth of the rows; return whether the target holds."""
    few, many = (run("Temper, whole", generate(count), keep) for count in (rows // 10, rows))
    print(f"\n{table({'Temper, whole': many})}\n")
    return target(f"peak over that at {rows // 10} rows", many.peak / few.peak, GROWTH, "", rows >= 10 * ROWS)


def main() -> int:
    """Measure what is asked for, print the tables, and say whether the promises hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=ROWS, help=f"of the file (default: {ROWS})")
    parser.add_argument("--only", choices=("core", "whole", "memory"), help="one part; memory is in no other run")
    parser.add_argument("--keep", action="store_true", help="keep what each wrote, in build/bench-data/out")
    given = parser.parse_args()
    if given.only != "core" and not (MODEL / "tokenizer.json").is_file():
        sys.exit(
            f"there is no base model in {MODEL} to count tokens with: run make model MODEL=smollm2-135m, or --only core"
        )
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    source = generate(given.rows)
    print(
        f"{given.rows} rows, {source.stat().st_size / 1e6:.0f} MB; {CORES} of {os.cpu_count()} cores,"
        f" load {os.getloadavg()[0]:.1f}; peak: PSS of all processes together, looked at every {EVERY} s",
        flush=True,
    )
    if given.only == "memory":
        return 0 if growth(given.rows, given.keep) else 1
    parts = [part for part in (core, whole) if given.only in (None, part.__name__)]
    return 0 if all([part(given.rows, given.keep) for part in parts]) else 1


if __name__ == "__main__":
    sys.exit(main())
