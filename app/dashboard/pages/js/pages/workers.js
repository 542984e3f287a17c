// Nodes, their devices, and what runs on them.

import { get } from "../api.js";
import { byId, h, table } from "../dom.js";
import { bytes, time } from "../format.js";
import { empty, show, startPage } from "../shell.js";

startPage();
const content = byId("content");

await show(content, "workers", () => get("workers"), ({ data }) => {
  if (!data.length) return void empty(content, "No worker is attached");
  return data.map((worker) => h("section", { class: "card" },
    h("h2", {}, worker.name, " ", h("span", { class: "tag" }, worker.engine)),
    table([
      { title: "Device", cell: (device) => `${device.kind} ${device.index}` },
      { title: "What runs", cell: (device) => device.job_id ?? "free" },
      { title: "Memory", number: true, cell: (device) => bytes(device.memory_bytes) },
    ], worker.devices, { caption: `heard of ${time(worker.heartbeat_at)}` })));
});
