// gRPC channels of Node.js: each line of input is a JSON list of targets, that are open from then on.
"use strict";
const readline = require("node:readline");
const grpc = require("@grpc/grpc-js");
require("@grpc/grpc-js-xds").register();

async function main() {
  let clients = [];
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const opened = JSON.parse(line).map(
      (target) => new grpc.Client(`xds:///${target}`, grpc.credentials.createInsecure()),
    );
    for (const client of opened) client.getChannel().getConnectivityState(true);
    for (const client of clients) client.close();
    clients = opened;
    console.log("open");
  }
  process.exit(0);
}
main();
