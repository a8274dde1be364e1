"""Who asks the greeter: `python client.py NAME NUMBER`."""

import sys

import grpc

import meshlib_grpc

if __name__ == "__main__":
    name, number = sys.argv[1:]
    with meshlib_grpc.channel("greeter:9080") as channel:
        hello = channel.unary_unary("/greeter.Greeter/Hello", str.encode, bytes.decode)
        count = channel.unary_stream("/greeter.Greeter/Count", str.encode, bytes.decode)
        try:
            print(hello(name, timeout=10))
            print(*count(number, timeout=10))
        except grpc.RpcError as error:
            print(error.code().name, error.details())
