// gRPC's own xDS servers in Node.js: argv are name=address pairs. They serve until the input ends.
// Each method of greeter.Greeter answers with the server's name and who calls by its certificate.
"use strict";
const grpc = require("@grpc/grpc-js");
const xds = require("@grpc/grpc-js-xds");
xds.register();

const text = { write: (said) => Buffer.from(said), read: (bytes) => bytes.toString() };

function method(name) {
  return {
    path: `/greeter.Greeter/${name}`,
    requestStream: false,
    responseStream: false,
    requestSerialize: text.write,
    requestDeserialize: text.read,
    responseSerialize: text.write,
    responseDeserialize: text.read,
  };
}

const names = ["Hello", "Admin", "Other"];
const service = Object.fromEntries(names.map((name) => [name, method(name)]));
// What the configuration says: mutual TLS, or plain text.
const credentials = new xds.XdsServerCredentials(grpc.ServerCredentials.createInsecure());

const servers = process.argv.slice(2).map((pair) => {
  const [name, address] = pair.split("=");
  const hello = (call, answer) => {
    const shown = call.getAuthContext().sslPeerCertificate?.subjectaltname ?? "";
    answer(null, `${name} ${/URI:(spiffe:[^,]*)/.exec(shown)?.[1] ?? ""} -`);
  };
  const server = new xds.XdsServer();
  server.addService(service, Object.fromEntries(names.map((each) => [each, hello])));
  server.bindAsync(address, credentials, (error) => {
    if (error) throw error;
  });
  return server;
});
process.stdin.resume().on("end", () => {
  for (const server of servers) server.forceShutdown();
  process.exit(0);
});
