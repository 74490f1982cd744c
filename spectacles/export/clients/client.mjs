// Answers for photos, with this file, onnxruntime-web and sharp alone: node client.mjs photo.jpg ...

import { readFileSync } from "node:fs";
import * as ort from "onnxruntime-web";
import sharp from "sharp";

ort.env.wasm.numThreads = 1; // several spin while they wait, which takes minutes on a busy machine
const beside = (name) => readFileSync(new URL(name, import.meta.url));
const classes = beside("labels.txt").toString().split("\n").slice(0, -1);
const session = await ort.InferenceSession.create(beside("onnx_photo-fp32.onnx"));
for (const file of process.argv.slice(2)) {
  const upright = sharp(file).autoOrient().flatten({ background: "white" }).toColourspace("srgb");
  const { data, info } = await upright.raw().toBuffer({ resolveWithObject: true });
  const photo = new ort.Tensor("uint8", data, [info.height, info.width, 3]);
  const { probabilities } = await session.run({ photo });
  const named = classes.map((name, place) => [name, probabilities.data[place]]);
  console.log(JSON.stringify({ file, probabilities: Object.fromEntries(named) }));
}
