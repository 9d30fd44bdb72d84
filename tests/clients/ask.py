"""Asks a running service with a client that is not ours: ask.py CLIENT MQTT_PORT HTTP_PORT."""

import asyncio
import json
import os
import queue
import sys

CLIENT, MQTT_PORT, HTTP_PORT = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
PROMPT = "Name a river."


def paho():
    import paho.mqtt.client as mqtt
    from paho.mqtt.packettypes import PacketTypes
    from paho.mqtt.properties import Properties

    for protocol in (mqtt.MQTTv5, mqtt.MQTTv311):
        came, ready = queue.Queue(), queue.Queue()
        client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=protocol)
        client.on_message = lambda _c, _u, message: came.put(message)
        client.on_subscribe = lambda *_: ready.put(True)
        client.username_pw_set("pilotlight", os.environ["MQTT_PASSWORD"])
        client.connect("127.0.0.1", MQTT_PORT)
        client.loop_start()
        client.subscribe([("pilotlight/dev/reply/paho/#", 1), ("pilotlight/dev/stream/paho", 1)])
        ready.get(timeout=10)
        properties = None
        if protocol == mqtt.MQTTv5:
            properties = Properties(PacketTypes.PUBLISH)
            properties.ResponseTopic = "pilotlight/dev/reply/paho/mine"
            properties.CorrelationData = b"mark"
        request = {"id": f"p-{protocol}", "prompt": PROMPT, "max_tokens": 8, "stream": True}
        client.publish("pilotlight/dev/request/paho", json.dumps(request), 1, properties=properties)
        pieces, reply, done = [], None, False
        while reply is None or not done:
            message = came.get(timeout=60)
            body = json.loads(message.payload)
            if "/stream/" in message.topic:
                done = done or body.get("done", False)
                pieces.append(body.get("text", ""))
            else:
                reply = body
                if protocol == mqtt.MQTTv5:
                    assert message.topic.endswith("/mine"), message.topic
                    assert message.properties.CorrelationData == b"mark"
        assert reply["status"] == "ok" and reply["id"] == request["id"], reply
        assert "".join(pieces) == reply["text"], (pieces, reply)
        client.loop_stop()
        client.disconnect()


def openai():
    from openai import BadRequestError, OpenAI

    client = OpenAI(base_url=f"http://127.0.0.1:{HTTP_PORT}/v1", api_key="none")
    assert sorted(m.id for m in client.models.list()) == ["minilm", "smollm2-135m"]
    messages = [{"role": "user", "content": PROMPT}]
    plain = client.chat.completions.create(
        model="smollm2-135m", messages=messages, max_tokens=8, metadata={"deadline_ms": "60000"}
    )
    assert plain.choices[0].message.content and plain.usage.completion_tokens <= 8, plain
    assert plain.pilotlight["decision"]["route"] == "local", plain
    stream = client.chat.completions.create(
        model="smollm2-135m", messages=messages, max_tokens=8, temperature=0, stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text and chunks[-1].usage.completion_tokens <= 8, chunks
    schema = {
        "type": "object", "properties": {"state": {"enum": ["ok", "hot"]}},
        "required": ["state"], "additionalProperties": False,
    }
    answer = client.chat.completions.create(
        model="smollm2-135m", messages=messages,
        response_format={"type": "json_schema", "json_schema": {"name": "s", "schema": schema}},
    )
    assert json.loads(answer.choices[0].message.content)["state"] in ("ok", "hot"), answer
    likely = client.chat.completions.create(
        model="smollm2-135m", messages=messages, max_tokens=8, logprobs=True, top_logprobs=2
    ).choices[0]
    tokens = likely.logprobs.content
    assert "".join(t.token for t in tokens) == likely.message.content, likely
    assert all(t.logprob <= 0 and len(t.top_logprobs) == 2 for t in tokens), likely
    label = client.chat.completions.create(
        model="auto", metadata={"task": "topic"},
        messages=[{"role": "user", "content": "The radiator in room 3 stays cold"}],
    )
    assert label.choices[0].message.content in ("climate", "energy", "network", "security"), label
    assert 0.25 < label.pilotlight["confidence"] <= 1, label
    texts = ["a fire", "a flame", "an invoice"]
    fire, flame, invoice = [d.embedding for d in client.embeddings.create(model="minilm", input=texts).data]
    product = lambda a, b: sum(x * y for x, y in zip(a, b))
    assert len(fire) == 384 and product(fire, flame) > product(fire, invoice)
    try:
        client.chat.completions.create(model="smollm2-135m", messages=messages, max_tokens=99999)
        raise AssertionError("absurd max_tokens was taken")
    except BadRequestError as error:
        assert error.param == "max_tokens", error


def mcp():
    from mcp import ClientSession, StdioServerParameters
    from mcp.client.stdio import stdio_client
    from mcp.client.streamable_http import streamable_http_client

    async def talk(streams, names):
        async with ClientSession(streams[0], streams[1]) as session:
            await session.initialize()
            tools = (await session.list_tools()).tools
            assert [tool.name for tool in tools] == names, tools
            if "embed" in names:
                result = await session.call_tool("embed", {"input": ["a fire", "an invoice"]})
                content = getattr(result, "structured_content", None) or result.structuredContent
                assert [len(vector) for vector in content["embeddings"]] == [384, 384], result
            # the model is loaded while the client says hello
            for _ in range(300):
                resources = (await session.list_resources()).resources
                uris = [str(resource.uri) for resource in resources]
                if "model://smollm2-135m/context" in uris:
                    break
                await asyncio.sleep(0.2)
            assert "model://smollm2-135m/context" in uris, uris
            read = await session.read_resource("model://smollm2-135m/context")
            assert json.loads(read.contents[0].text)["runtime"]["backend"] == "llama.cpp"
            pieces = []

            async def progress(_progress, _total, message):
                pieces.append(message)

            result = await session.call_tool(
                "generate", {"prompt": PROMPT, "max_tokens": 8}, progress_callback=progress
            )
            content = getattr(result, "structured_content", None) or result.structuredContent
            assert content["text"] and content["usage"]["decision"]["route"] == "local", result
            refused = await session.call_tool("generate", {"prompt": ""})
            assert getattr(refused, "is_error", None) or refused.isError, refused

    async def both():
        url = f"http://127.0.0.1:{HTTP_PORT}/mcp"
        async with streamable_http_client(url) as streams:
            await talk(streams, ["generate", "embed"])
        server = StdioServerParameters(
            command="target/quick/pilotlight",
            args=["mcp"],
            env={"PILOTLIGHT_MQTT": "off", "PILOTLIGHT_HTTP": "off"},
        )
        async with stdio_client(server) as streams:
            await talk(streams, ["generate"])

    asyncio.run(both())


def tools():
    """A tool is called and its result is answered, by each protocol of a cloud and by two SDKs."""
    from mcp import ClientSession
    from mcp.client.streamable_http import streamable_http_client
    from openai import OpenAI

    schema = {"type": "object", "properties": {"open": {"type": "boolean"}}, "required": ["open"]}
    client = OpenAI(base_url=f"http://127.0.0.1:{HTTP_PORT}/v1", api_key="none")
    offered = [{"type": "function", "function": {"name": "valve", "parameters": schema, "strict": True}}]
    for model, stream in (("auto", False), ("big-1", True), ("big-2", False), ("big-2", True),
                          ("three", False), ("three", True)):
        messages = [{"role": "user", "content": "It smells of gas."}]
        ask = lambda **more: client.chat.completions.create(
            model=model, messages=messages, tools=offered, **more
        )
        if stream:
            deltas = [c.choices[0].delta for c in ask(stream=True) if c.choices]
            made = [call for delta in deltas for call in delta.tool_calls or []]
            assert len(made) == 1 and made[0].index == 0, deltas
            call = {"id": made[0].id, "type": "function", "function": made[0].function.model_dump()}
            messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
        else:
            answer = ask()
            assert answer.choices[0].finish_reason == "tool_calls", answer
            reasons = ("capability:tools", "feasible")
            assert answer.pilotlight["decision"]["reason"] in reasons, answer
            messages.append(answer.choices[0].message)
            call = answer.choices[0].message.tool_calls[0].model_dump()
        assert json.loads(call["function"]["arguments"]) == {"open": False}, call
        assert call["id"] == "call_1", call
        messages.append({"role": "tool", "tool_call_id": call["id"], "content": "shut"})
        last = ask().choices[0]
        assert (last.message.content, last.finish_reason) == ("The valve is shut.", "stop"), last

    async def by_mcp():
        async with streamable_http_client(f"http://127.0.0.1:{HTTP_PORT}/mcp") as streams:
            async with ClientSession(streams[0], streams[1]) as session:
                await session.initialize()
                given = {"prompt": "It smells of gas.", "tools": [{"name": "valve", "input_schema": schema}]}
                result = await session.call_tool("generate", given)
                content = getattr(result, "structured_content", None) or result.structuredContent
                (call,) = content["usage"]["tool_calls"]
                assert call == {"id": "call_1", "name": "valve", "arguments": {"open": False}}, content

    asyncio.run(by_mcp())


{"paho": paho, "openai": openai, "mcp": mcp, "tools": tools}[CLIENT]()
