"use strict"

const ZH = {
  "New conversation": "新对话",
  "Settings": "设置",
  "Models": "模型",
  "System prompt": "系统提示词",
  "Who the model is to be; may be empty": "模型的身份和要求，可以留空",
  "Remember the conversation": "记住之前的对话",
  "Temperature": "温度",
  "0 gives the same answer each time.": "为 0 时每次回答相同。",
  "Longest answer, tokens": "回答最长（词元数）",
  "Conversation": "对话",
  "Ask the model something.": "向模型提个问题吧。",
  "The conversation is kept in this page only, and gone when it is closed.": "对话只保存在本页面中，关闭后即消失。",
  "Your question": "输入问题",
  "Send": "发送",
  "Stop": "停止",
  "sends": "发送",
  "starts a new line": "换行",
  "stops the answer": "停止回答",
  "This server wants its API key": "此服务器需要 API 密钥",
  "The key was refused": "密钥不正确",
  "It is kept in this page only.": "密钥只保存在本页面中。",
  "Go on": "继续",
  "Cancel": "取消",
  "first token after {0} s": "首个词元 {0} 秒",
  "{0} tokens": "{0} 个词元",
  "{0} tokens/s": "{0} 词元/秒",
  "cut at the limit": "已达最长限制",
  "stopped": "已停止",
  "The server cannot be reached.": "无法连接服务器。",
  "The answer broke off.": "回答中断。",
}
const FENCE = /^```.*\n?/m

const page = Object.fromEntries([...document.querySelectorAll("[id]")].map(node => [node.id, node]))
const turns = [] // {question, node, answers}
let models = [] // {name, ask, box}
let chinese = navigator.language.startsWith("zh")
let key = ""
let running = null // the AbortController of the question under way

const t = (text, ...values) => values.reduce((so, value, at) => so.replace(`{${at}}`, value), (chinese && ZH[text]) || text)

function make(tag, className = "", text = "") {
  const node = document.createElement(tag)
  node.className = className
  node.textContent = text
  return node
}

function translate() {
  document.documentElement.lang = chinese ? "zh" : "en"
  for (const node of document.querySelectorAll("[data-t]")) node.textContent = t(node.dataset.t ||= node.textContent)
  for (const node of document.querySelectorAll("[placeholder]")) {
    node.placeholder = t(node.dataset.placeholder ||= node.placeholder)
  }
  page.language.textContent = chinese ? "English" : "中文"
  page.language.lang = chinese ? "en" : "zh"
  for (const answer of turns.flatMap(turn => turn.answers)) answer.describe()
}

// Text is only ever set as text: what a model or a person writes never becomes markup.
function show(node, text) {
  text.split(FENCE).forEach((part, at) => {
    const code = at % 2 === 1
    const child = node.children[at] ?? node.appendChild(make(code ? "pre" : "p"))
    const shown = code ? part.trimEnd() : part.trim()
    if (child.textContent !== shown) child.textContent = shown
  })
}

function following(change) {
  const {log} = page
  const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40
  change()
  if (atEnd) log.scrollTop = log.scrollHeight
}

async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader()
  let rest = ""
  try {
    for (;;) {
      const {done, value} = await reader.read()
      if (done) throw new Error(t("The answer broke off."))
      const lines = (rest + value).split(/\r?\n/)
      rest = lines.pop()
      for (const line of lines) {
        const data = line.startsWith("data:") && line.slice(5).trim()
        if (data === "[DONE]") return
        if (data) yield JSON.parse(data)
      }
    }
  } finally {
    reader.cancel().catch(() => {})
  }
}

const said = body => body.error?.message ?? body.error ?? ""

async function problem(response) {
  const text = await response.text()
  try {
    return `${response.status}: ${said(JSON.parse(text)) || text}`
  } catch {
    return `${response.status}: ${text || response.statusText}`
  }
}

class Answer {
  text = ""
  tokens = 0
  ending = "" // a finish_reason, or "stopped"
  error = ""
  refused = false

  constructor(model) {
    this.model = model
    this.node = make("article")
    this.body = make("div", "body")
    this.failure = make("p", "failure")
    this.facts = make("p", "facts")
    this.failure.setAttribute("role", "alert")
    this.node.append(make("h3", "", model.name), this.body, this.failure, this.facts)
  }

  async run(messages, signal) {
    this.node.ariaBusy = "true"
    this.sent = performance.now()
    try {
      await this.read(messages, signal)
    } catch (error) {
      if (signal.aborted) this.ending = "stopped"
      else this.error = error instanceof TypeError ? t("The server cannot be reached.") : error.message
    }
    this.node.ariaBusy = "false"
    this.render()
  }

  async read(messages, signal) {
    const response = await fetch(this.model.ask, {
      method: "POST",
      headers: {"content-type": "application/json", ...(key && {authorization: `Bearer ${key}`})},
      body: JSON.stringify({
        model: "tgi",
        messages,
        temperature: Number(page.temperature.value),
        max_tokens: Number(page.tokens.value) || undefined,
        stream: true,
        stream_options: {include_usage: true},
      }),
      signal,
    })
    this.refused = response.status === 401
    if (!response.ok) throw new Error(await problem(response))
    for await (const event of events(response.body)) this.take(event)
  }

  take(event) {
    if (event.error) throw new Error(said(event))
    this.tokens = event.usage?.completion_tokens ?? this.tokens
    for (const {delta, finish_reason: reason} of event.choices) {
      this.tokens += 1
      this.last = performance.now()
      this.first ??= this.last
      this.ending = reason ?? this.ending
      this.text += delta.content ?? ""
    }
    this.due ??= requestAnimationFrame(() => this.render())
  }

  render() {
    this.due = null
    following(() => {
      show(this.body, this.text)
      this.describe()
    })
  }

  describe() {
    const seconds = (this.last - this.first) / 1000
    this.failure.textContent = this.error
    this.facts.textContent = [
      this.first && t("first token after {0} s", ((this.first - this.sent) / 1000).toFixed(2)),
      this.first && t("{0} tokens", this.tokens),
      seconds > 0 && t("{0} tokens/s", ((this.tokens - 1) / seconds).toFixed(1)),
      this.ending === "length" && t("cut at the limit"),
      this.ending === "stopped" && t("stopped"),
    ].filter(Boolean).join(" · ")
  }
}

function messages(model, question) {
  const system = page.system.value.trim()
  const past = !page.memory.checked ? [] : turns.flatMap(turn => {
    const answer = turn.answers.find(one => one.model === model)
    return answer?.text ? [["user", turn.question], ["assistant", answer.text]] : []
  })
  return [...(system ? [["system", system]] : []), ...past, ["user", question]].map(([role, content]) => ({role, content}))
}

async function ask(question) {
  const answers = models.filter(model => model.box.checked).map(model => new Answer(model))
  const conversations = answers.map(answer => messages(answer.model, question))
  const turn = {question, answers, node: make("section", "turn")}
  turn.node.append(make("p", "question", question), ...answers.map(answer => answer.node))
  turns.push(turn)
  page.log.append(turn.node)
  page.log.scrollTop = page.log.scrollHeight
  await busy(signal => Promise.all(answers.map((answer, at) => answer.run(conversations[at], signal))))
  if (answers.some(answer => answer.refused)) wantKey(turn)
}

async function busy(work) {
  running = new AbortController()
  const wait = on => [page.send.hidden, page.stop.hidden] = [on, !on]
  wait(true)
  await work(running.signal)
  wait(false)
  running = null
}

function wantKey(turn) {
  page.wanted.dataset.t = key ? "The key was refused" : "This server wants its API key"
  translate()
  if (turn.answers.every(answer => answer.refused)) {
    turns.splice(turns.indexOf(turn), 1)
    turn.node.remove()
    page.question.value ||= turn.question
  }
  page.lock.showModal()
}

function clear() {
  running?.abort()
  for (const turn of turns.splice(0)) turn.node.remove()
  page.question.focus()
}

async function start() {
  translate()
  page.settings.open = matchMedia("(min-width: 60em)").matches
  models = await (await fetch("ui/models.json")).json()
  for (const model of models) {
    model.box = Object.assign(make("input"), {type: "checkbox", checked: true, hidden: models.length === 1})
    const label = make("label", "choice")
    label.append(model.box, make("span", "", model.name))
    page.models.append(label)
  }
}

page.ask.addEventListener("submit", event => {
  event.preventDefault()
  const question = page.question.value.trim()
  if (running || !question || !models.some(model => model.box.checked)) return
  page.question.value = ""
  page.question.focus()
  ask(question)
})
page.question.addEventListener("keydown", event => {
  // While a Chinese word is being composed, Enter chooses it; Safari says so by the code 229 only.
  if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return
  event.preventDefault()
  page.ask.requestSubmit()
})
document.addEventListener("keydown", event => event.key === "Escape" && running?.abort())
page.stop.addEventListener("click", () => {
  running?.abort()
  page.question.focus()
})
page.clear.addEventListener("click", clear)
page.temperature.addEventListener("input", () => (page.degree.value = page.temperature.value))
page.language.addEventListener("click", () => {
  chinese = !chinese
  translate()
})
page.unlock.addEventListener("submit", event => {
  event.preventDefault()
  key = page.key.value
  page.key.value = ""
  page.lock.close()
  page.ask.requestSubmit()
})
page.cancel.addEventListener("click", () => page.lock.close())
start()
