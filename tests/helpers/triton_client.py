# /// script
# requires-python = ">=3.11"
# dependencies = ["tritonclient[grpc]==2.73.0"]
# ///
"""Drives a pod with NVIDIA's client and prints what it saw, as JSON: `triton_client.py PORT`.

A script with an environment of its own: the client pins an older protobuf than we use. It imports nothing of ours.
"""

import json
import queue
import sys

import numpy
import tritonclient.grpc as triton

SECONDS = 10.0


def text_input(text: str) -> triton.InferInput:
    tensor = triton.InferInput("text_input", [1], "BYTES")
    tensor.set_data_from_numpy(numpy.array([text.encode()], dtype=object))
    return tensor


def stream_flag() -> triton.InferInput:
    tensor = triton.InferInput("stream", [1], "BOOL")
    tensor.set_data_from_numpy(numpy.array([True]))
    return tensor


def sampling(**parameters: object) -> triton.InferInput:
    tensor = triton.InferInput("sampling_parameters", [1], "BYTES")
    tensor.set_data_from_numpy(numpy.array([json.dumps(parameters).encode()], dtype=object))
    return tensor


def texts(result: triton.InferResult) -> list[str]:
    return [text.decode() for text in result.as_numpy("text_output")]


def infer(client: triton.InferenceServerClient) -> dict[str, object]:
    result = client.infer("fake", [text_input("hi"), sampling(max_tokens="5")], request_id="q", timeout=1_000_000)
    several = client.infer("fake", [text_input("hi")], parameters={"n": 2, "stop": "o"})
    tokens = triton.InferInput("input_ids", [2], "INT32")
    tokens.set_data_from_numpy(numpy.array([5, 6], dtype=numpy.int32))
    return {
        "text": texts(result),
        "id": result.get_response().id,
        "output_tokens": result.as_numpy("num_output_tokens").tolist(),
        "several": texts(several),
        "from_ids": texts(client.infer("fake", [tokens])),
    }


def refused(client: triton.InferenceServerClient) -> str:
    try:
        client.infer("fake", [text_input("hi"), sampling(temperature=-1)])
    except triton.InferenceServerException as error:
        return f"{error.status()}: {error.message()}"
    return "not refused"


def stream(client: triton.InferenceServerClient) -> dict[str, object]:
    """Two requests in one stream, the second one wrong."""
    answers: queue.Queue[tuple[triton.InferResult | None, Exception | None]] = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    client.async_stream_infer(
        "fake", [text_input("hi"), stream_flag()], request_id="right", enable_empty_final_response=True
    )
    client.async_stream_infer("fake", [text_input("hi"), sampling(top_p=2)], request_id="wrong")
    pieces: list[str] = []
    errors: list[str] = []
    final = False
    while not (final and errors):
        result, error = answers.get(timeout=SECONDS)
        if error is not None:
            errors.append(str(error))
            continue
        pieces += texts(result)
        final = result.get_response().parameters["triton_final_response"].bool_param
    client.stop_stream()
    return {"pieces": pieces, "errors": errors}


def main() -> None:
    with triton.InferenceServerClient(f"127.0.0.1:{sys.argv[1]}") as client:
        seen = {
            "live": client.is_server_live(),
            "ready": client.is_server_ready(),
            "model_ready": [client.is_model_ready("fake"), client.is_model_ready("other")],
            "server": client.get_server_metadata(as_json=True)["name"],
            "inputs": [tensor["name"] for tensor in client.get_model_metadata("fake", as_json=True)["inputs"]],
            "infer": infer(client),
            "refused": refused(client),
            "stream": stream(client),
        }
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
