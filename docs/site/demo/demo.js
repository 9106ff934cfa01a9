// The model answers in the page. wllama, llama.cpp built for browsers, reads model.gguf beside this script; nothing leaves the
// computer. The switch is the chat template's own: enable_thinking. A browser starts no module of a page that was opened from a
// folder: then the page goes on saying how to serve it.
const demo = document.getElementById("demo");
const status = demo.querySelector("[role=status]");
const button = demo.querySelector("button");
const beside = (name) => new URL(name, import.meta.url).href;
const MOST = 256; // tokens of a reply

function say(key, more = "") {
  status.textContent = demo.dataset[key] + more;
}

async function load() {
  say("loading");
  const { Wllama, LoggerWithoutDebug } = await import(beside("wllama.js"));
  const engine = new Wllama({ default: beside("wllama.wasm") }, { logger: LoggerWithoutDebug });
  const file = await fetch(beside("model.gguf"));
  if (!file.ok) throw new Error(`model.gguf: ${file.status}`);
  await engine.loadModel([await file.blob()], { n_ctx: 1024, n_threads: 1, n_gpu_layers: 0 });
  say("ready");
  button.disabled = false;
  return engine;
}

async function reply(engine, question, column) {
  const [thought, answer] = [column.querySelector("pre"), column.querySelector("p")];
  thought.textContent = answer.textContent = "";
  const stream = await engine.createChatCompletion({
    messages: [{ role: "user", content: question }],
    chat_template_kwargs: { enable_thinking: column.dataset.mode === "thinking" },
    temperature: 0,
    max_tokens: MOST,
    stream: true,
  });
  for await (const { choices } of stream) {
    const { reasoning_content: reasoning, content } = choices[0]?.delta ?? {};
    thought.textContent += reasoning ?? "";
    answer.textContent += content ?? "";
    if (choices[0]?.finish_reason === "length") answer.textContent += ` ${demo.dataset.cut}`;
  }
}

const fail = (error) => say("failed", ` ${error.message}`);
const loaded = load().catch(fail);

demo.querySelector("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const engine = await loaded;
  if (!engine) return;
  button.disabled = true;
  say("writing");
  try {
    const question = demo.querySelector("input").value;
    for (const column of demo.querySelectorAll("[data-mode]")) await reply(engine, question, column);
    say("ready");
  } catch (error) {
    fail(error);
  }
  button.disabled = false;
});
