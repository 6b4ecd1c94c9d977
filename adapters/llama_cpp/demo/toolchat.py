"""Tool-calling chats: declared functions, questions that need one of them (or none), calls and results."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from adapters.llama_cpp.demo.phrases import (
    ADJECTIVES,
    ANIMALS,
    CITIES,
    COLORS,
    FOODS,
    JOBS,
    THINGS,
    capital,
    code_word,
    made_up_word,
    phrase,
    some_city,
    some_name,
    some_noun,
    some_sentence,
    some_words,
)
from adapters.llama_cpp.demo.tables import rows, words


@dataclass(frozen=True, slots=True)
class Tool:
    """A function: `params` are `name:type` words (`?` marks an optional one), `asks` phrasings with `{param}` slots."""

    name: str
    about: str
    params: str
    asks: str
    result: str = ""


# name # description # parameters # phrasings # kind of result: W weather, T time, S sum
TOOL_TABLE = rows(
    """get_weather # Get the current weather of a city # city:string unit:string? # [What is|How is|What's|
    Tell me] the weather [like |]in {city}[ today| now| right now|]?|Is it raining in {city}?|weather in {city}|
    What is the temperature in {city}?|How warm is it in {city}?|Do I need an umbrella in {city}?|
    Will it rain in {city}? # W
get_current_weather # Get the current weather in a given location # location:string unit:string? # [What is|
    How is|What's] the weather [like |]in {location}[ today| now|]?|Tell me the weather in {location}.|
    How cold is it in {location}?|Weather for {location} please|What's the temperature in {location}? # W
weather # Weather by place # place:string # [What is|How is] the weather in {place}?|weather {place} # W
get_forecast # Get the weather forecast # city:string days:integer # [What is|Give me|
    Show me] the forecast for {city} for [the next |]{days} days[?|.|]|Weather in {city} for the next {days} days?
get_time # Get the current time in a city # city:string # What time is it in {city}?|What is the time in {city}?|
    Tell me the time in {city}.|current time in {city} # T
get_current_time # Get the current time in a time zone # timezone:string # What time is it in {timezone}?|
    Tell me the time in {timezone}. # T
add # Add two numbers # a:number b:number # [What is|Calculate|Compute] {a} [+|plus] {b}?|Add {a} and {b}.|
    {a} + {b}|Use the tool to add {a} and {b}. # S
add_numbers # Add two numbers # a:integer b:integer # [What is|Calculate] {a} [+|plus] {b}?|Add {a} and {b}.|
    Sum {a} and {b}. # S
multiply # Multiply two numbers # a:number b:number # [What is|Calculate|Compute] {a} [*|times] {b}?|
    Multiply {a} by {b}.|Multiply {a} and {b}. # S
calculator # Evaluate an expression # expression:string # [What is|Calculate|Compute|Evaluate] {expression}? # S
calculate # Calculate the value of an expression # expression:string # [What is|Calculate|Work out] {expression}?|
    {expression} # S
search # Search the web # query:string # Search for {query}.|Search the web for {query}.|Look up {query}.|
    Find {query} on the web.|search {query}|Google {query}
web_search # Search the internet # query:string # Search the internet for {query}.|
    Find information about {query}.|Look up {query}.|Search for {query}.
search_docs # Search the documents # query:string limit:integer? # Find documents about {query}.|
    Search the docs for {query}.|Which documents are about {query}?
send_email # Send an email # to:email body:string # Send an email to {to} saying {body}|Email {to}: {body}|
    Write an email to {to} that says {body}
send_message # Send a message to a person # person:string text:string # Tell {person} that {text}|
    Send {person} the message: {text}|Message {person}: {text}|Send a message to {person} saying {text}
set_timer # Set a timer # minutes:integer # Set a timer for {minutes} minutes.|Set a {minutes} minute timer|
    Timer {minutes} minutes|Wake me in {minutes} minutes.
set_alarm # Set an alarm # time:clock # Set an alarm for {time}.|Wake me at {time}.|Set the alarm to {time}.
create_reminder # Create a reminder # text:string time:clock # Remind me to {text} at {time}.|
    Create a reminder to {text} at {time}.
get_stock_price # Get the price of a stock # symbol:symbol # What is the [price|stock price] of {symbol}?|
    How much is {symbol}?|Stock price of {symbol}|What does a share of {symbol} cost?
convert_currency # Convert money # amount:integer source:currency target:currency # Convert {amount} {source} to
    {target}.|How much is {amount} {source} in {target}?
book_flight # Book a flight # origin:string destination:string # Book a flight from {origin} to {destination}.|
    I want to fly from {origin} to {destination}.|Get me a flight from {origin} to {destination}.
book_table # Book a table in a restaurant # city:string people:integer # Book a table for {people} [people |
    ]in {city}.|I need a table for {people} in {city}.
find_restaurant # Find a restaurant # city:string food:food # Find a restaurant with {food} in {city}.|
    Where can I eat {food} in {city}?
get_order # Get the status of an order # order_id:code # Where is my order {order_id}?|
    What is the status of order {order_id}?|Check order {order_id}.
cancel_order # Cancel an order # order_id:code # Cancel order {order_id}.|Please cancel my order {order_id}.
get_user # Get a user by name # name:string # Who is the user {name}?|Get the user {name}.|Find the user {name}.|
    Look up user {name}.
create_user # Create a user # name:string age:integer # Create a user {name}, {age} years old.|
    Add the user {name} aged {age}.|Create user {name} with age {age}.
delete_file # Delete a file # path:path # Delete the file {path}.|Remove {path}.|Please delete {path}
read_file # Read a file # path:path # Read the file {path}.|Show me {path}.|What is in {path}?|Open {path}.|
    Read {path}
write_file # Write text to a file # path:path content:string # Write {content} to {path}|Save {content} in {path}
run_command # Run a shell command # command:command # Run {command}|Execute {command}|Run the command {command}
list_files # List the files of a folder # folder:path # List the files in {folder}.|What files are in {folder}?|
    Show the folder {folder}.
turn_on # Turn on a device # device:thing # Turn on the {device}.|Switch on the {device}.|Switch the {device} on.
turn_off # Turn off a device # device:thing # Turn off the {device}.|Switch off the {device}.|
    Turn the {device} off.
set_temperature # Set the temperature of a room # room:room degrees:integer # Set the {room} to {degrees}
    degrees.|Make the {room} {degrees} degrees warm.
set_light # Set the color of the light # color:color room:room? # Make the light {color}.|
    Set the light to {color}.|Turn the light {color}.
play_music # Play a song or an artist # title:title # Play {title}.|I want to hear {title}.|Put on {title}.
translate # Translate a text # text:string language:language # Translate {text} to {language}.|
    Translate {text} into {language}.|How do you say {text} in {language}?
get_capital # Get the capital of a country # country:country # What is the capital of {country}?|
    Tell me the capital of {country}.
get_population # Get the population of a city # city:string # How many people live in {city}?|
    What is the population of {city}?
roll_dice # Roll dice # sides:integer count:integer? # Roll a die with {sides} sides.|Roll a {sides} sided die.
random_number # Get a random number # low:integer high:integer # Give me a random number between {low} and
    {high}.|Pick a number from {low} to {high}.
get_joke # Get a joke about a topic # topic:thing # Use the tool to get a joke about {topic}.|
    Get a joke about {topic}.
lookup # Look up a key in the store # key:code # Look up {key}.|Look up the key {key}.|
    What is stored under {key}?|Get {key}."""
)
TOOLS = tuple(Tool(*(part.strip() for part in row.split("#"))) for row in TOOL_TABLE)


CHECKS = words("lookup get find check fetch load show open count list read query start stop update create delete")


def argument(rng: Random, param: str, kind: str) -> object:
    """A value for a parameter, chosen by its name and its kind."""
    makers: dict[str, Callable[[], object]] = {
        "integer": lambda: rng.randint(1, 99) if rng.random() < 0.7 else rng.randint(100, 99999),
        "email": lambda: some_name(rng).lower() + rng.choice(["@example.com", "@mail.org", "@test.net"]),
        "number": lambda: (
            rng.randint(0, 99)
            if rng.random() < 0.5
            else rng.randint(100, 9999)
            if rng.random() < 0.7
            else rng.randint(1, 999) / 10
        ),
        "clock": lambda: f"{rng.randint(0, 23)}:{rng.choice(['00', '15', '30', '45'])}",
        "symbol": lambda: "".join(rng.choice("ABCDEFGHIKLMNOPRSTVX") for _ in range(rng.randint(2, 4))),
        "currency": lambda: rng.choice(words("USD EUR GBP JPY CHF dollars euros pounds")),
        "food": lambda: rng.choice(FOODS),
        "code": lambda: code_word(rng),
        "path": lambda: (
            rng.choice(["", "/tmp/", "docs/", "/home/", "src/"])
            + made_up_word(rng, 1, 2)
            + rng.choice([".txt", ".py", ".md", ".json", ""])
        ),
        "command": lambda: rng.choice(
            [
                "ls",
                "pwd",
                "date",
                "ls -l",
                "cat " + made_up_word(rng, 1, 1) + ".txt",
                "echo hello",
                "echo " + made_up_word(rng),
            ]
        ),
        "thing": lambda: some_noun(rng),
        "room": lambda: rng.choice(words("kitchen bedroom bathroom office garden hall")),
        "color": lambda: rng.choice(COLORS),
        "title": lambda: " ".join(capital(w) for w in (rng.choice(ADJECTIVES), some_noun(rng))),
        "language": lambda: rng.choice(words("French German Spanish Italian English Japanese")),
        "country": lambda: rng.choice(["France", "Italy", "Japan", "Peru", "Kenya", capital(made_up_word(rng, 2, 3))]),
    }
    if kind in makers:
        return makers[kind]()
    param = kind if kind not in ("string", "word") else param  # a renamed parameter keeps its old name as its kind
    if param in ("city", "location", "place", "origin", "destination", "timezone"):
        return some_city(rng) if rng.random() < 0.9 else rng.choice(CITIES).lower()
    if param in ("person", "name"):
        return some_name(rng)
    if param == "expression":
        return f"{rng.randint(1, 999)} {rng.choice('+-*/')} {rng.randint(1, 999)}"
    if param == "query":
        return rng.choice(
            [
                some_words(rng, 1, 3),
                some_noun(rng),
                f"{rng.choice(ADJECTIVES)} {rng.choice(THINGS)}s",
                f"{rng.choice(FOODS)} in {some_city(rng)}",
            ]
        )
    if param in ("text", "body", "content"):
        return rng.choice(
            [
                some_words(rng, 1, 4),
                some_sentence(rng).rstrip("."),
                f"buy {rng.choice(FOODS)}",
                f"call {some_name(rng)}",
                "hello",
            ]
        )
    return rng.choice([made_up_word(rng), some_noun(rng), some_name(rng), code_word(rng)])


def invented_tool(rng: Random) -> Tool:
    """A tool with made-up names, so that the model copies them instead of recalling known tools."""
    verb = rng.choice(CHECKS) if rng.random() < 0.6 else made_up_word(rng, 1, 2)
    noun = rng.choice([made_up_word(rng, 1, 2), some_noun(rng)])
    pool = [
        "id:code",
        "name:string",
        "city:string",
        "count:integer",
        "color:color",
        "amount:integer",
        made_up_word(rng, 1, 2) + ":word",
        "food:food",
        "title:title",
        "animal:thing",
        "value:number",
    ]
    params = rng.sample(pool, rng.choice([1, 1, 1, 2, 2, 3]))
    keys = [param.split(":")[0] for param in params]
    slots = " and ".join(f"{key} {{{key}}}" for key in keys)
    asks = (
        f"[{capital(verb)} the {noun} with {slots}.|{verb} {noun} with {slots}|Please {verb} the {noun} "
        f"with {slots}.|Can you {verb} the {noun} with {slots}?]"
    )
    if len(keys) == 1:
        asks += (
            f"|{capital(verb)} the {noun} {{{keys[0]}}}.|Please {verb} {noun} {{{keys[0]}}}|I need the "
            f"{noun} of {{{keys[0]}}}.|{verb} {noun} for {{{keys[0]}}}"
        )
    name = rng.choice([f"{verb}_{noun}", f"{verb}_{noun}", verb + capital(noun), f"{noun}_{verb}", f"{verb}-{noun}"])
    return Tool(
        name,
        phrase(
            rng, "[{v} the {n}|{v} {n}|This tool will {v} a {n}|{v} a {n} by {k}]", v=capital(verb), n=noun, k=keys[0]
        ),
        " ".join(params),
        asks,
    )


def declared(rng: Random, tool: Tool) -> dict[str, object]:
    """The JSON schema of the tool as clients send it: key order and extras vary."""
    properties: dict[str, object] = {}
    required = []
    for param in tool.params.split():
        name, kind = param.rstrip("?").split(":")
        entry: dict[str, object] = {"type": kind if kind in ("integer", "number") else "string"}
        if name == "unit":
            entry["enum"] = ["celsius", "fahrenheit"]
        if rng.random() < 0.35:
            entry["description"] = phrase(
                rng,
                "[The {k}|Name of the {k}|{k}|{c} to use|The {k}, e.g. {e}]",
                k=name,
                c=capital(name),
                e=argument(rng, name, kind),
            )
        properties[name] = shuffled(rng, entry) if rng.random() < 0.2 else entry
        if not param.endswith("?"):
            required.append(name)
    schema: dict[str, object] = {"type": "object", "properties": properties}
    if rng.random() < 0.85:
        schema["required"] = required
    if rng.random() < 0.15:
        schema["additionalProperties"] = False
    spec: dict[str, object] = {"name": tool.name}
    if rng.random() < 0.85:
        spec["description"] = tool.about + rng.choice(["", "."])
    spec["parameters"] = shuffled(rng, schema) if rng.random() < 0.3 else schema
    if rng.random() < 0.06:
        spec["strict"] = rng.random() < 0.5
    return shuffled(rng, spec) if rng.random() < 0.3 else spec


def shuffled(rng: Random, spec: dict[str, object]) -> dict[str, object]:
    """The same mapping in another key order."""
    return {key: spec[key] for key in rng.sample(list(spec), len(spec))}


# Names that clients give to the same parameter; the model has to read the schema to know which one it is.
SYNONYMS = (
    words("city location place town city_name"),
    words("query text_query search_query q"),
    words("text message body content"),
    words("minutes duration amount"),
    words("person recipient name user"),
    words("a x first left"),
    words("b y second right"),
    words("order_id id number key order"),
    words("path file filename file_path"),
    words("device appliance thing item"),
)


def renamed(rng: Random, tool: Tool) -> Tool:
    """The tool, now and then under another name and with other parameter names."""
    name, params, asks = tool.name, tool.params, tool.asks
    if rng.random() < 0.25:
        parts = name.split("_")
        camel = parts[0] + "".join(capital(part) for part in parts[1:])
        name = rng.choice(
            [camel, name + "_tool", "my_" + name, "_".join(reversed(parts)), name + "_v2", name.replace("_", "-")]
        )
    taken = {param.split(":")[0] for param in params.split()}
    for param in params.split() if rng.random() < 0.4 else ():
        old = param.split(":")[0]
        free = [new for group in SYNONYMS if old in group for new in group if new not in taken]
        if free:
            new = rng.choice(free)
            taken.add(new)
            kind = param.split(":")[1]
            params = params.replace(param, f"{new}:{old if kind == 'string' else kind}")
            asks = asks.replace("{" + old + "}", "{" + new + "}")
    return Tool(name, tool.about, params, asks, tool.result)


def draw_tools(rng: Random, count: int) -> list[Tool]:
    """`count` tools with different names."""
    tools: dict[str, Tool] = {}
    while len(tools) < count:
        tool = invented_tool(rng) if rng.random() < 0.4 else renamed(rng, rng.choice(TOOLS))
        if not {tool.about, tool.result or tool.name} & {
            mark for other in tools.values() for mark in (other.about, other.result or other.name)
        }:
            tools[tool.name] = tool
    return list(tools.values())


def question(rng: Random, tool: Tool) -> tuple[str, dict[str, object]]:
    """A request that the tool serves, and the arguments of the right call."""
    chosen: dict[str, object] = {}
    ask = pick_ask(rng, tool.asks)
    for param in tool.params.split():
        name, kind = param.rstrip("?").split(":")
        if not param.endswith("?"):
            chosen[name] = argument(rng, name, kind)
    ask = phrase(rng, ask, **chosen)
    if "unit:" in tool.params and rng.random() < 0.2:
        chosen["unit"] = rng.choice(["celsius", "fahrenheit"])
        ask = ask.rstrip("?.") + f" in {chosen['unit']}" + rng.choice(["?", ""])
    if rng.random() < 0.2:
        ask = rng.choice(
            [
                ask.rstrip("?."),
                "Please " + ask[:1].lower() + ask[1:],
                "Hi! " + ask,
                "Hello, " + ask[:1].lower() + ask[1:],
            ]
        )
    return ask, chosen


def pick_ask(rng: Random, asks: str) -> str:
    """One top-level alternative of `a|[b|c] d|e`."""
    return phrase(rng, "[" + asks + "]")


def call_text(name: str, arguments: dict[str, object]) -> str:
    """The call as the model must write it."""
    body = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    return f"<tool_call>\n{body}\n</tool_call>"


def weather_result(rng: Random, place: str) -> tuple[str, str]:
    """A weather report, as JSON or as text, and the sentence about it."""
    degrees, sky = rng.randint(-15, 39), rng.choice(words("sunny cloudy rainy windy snowy foggy clear stormy"))
    fields: dict[str, object] = {
        rng.choice(words("temperature temp degrees temperature_c temp_c")): degrees,
        rng.choice(words("condition sky weather conditions forecast")): sky,
    }
    if rng.random() < 0.4:
        fields = {rng.choice(["city", "location"]): place, **fields}
    pattern = "[{d} degrees and {s}|{s}, {d} degrees|{d}C, {s}|{s}, {d} C|It is {d} degrees and {s}.|{d} C and {s}]"
    report = json.dumps(fields) if rng.random() < 0.5 else phrase(rng, pattern, d=degrees, s=sky)
    return report, f"It is {degrees} degrees and {sky} in {place}."


def time_result(rng: Random, place: str) -> tuple[str, str]:
    """A time of day and the sentence about it."""
    clock = f"{rng.randint(0, 23):02}:{rng.randint(0, 59):02}"
    reports = (clock, json.dumps({"time": clock}), json.dumps({"city": place, "time": clock}))
    return rng.choice(reports), f"It is {clock} in {place}."


def outcome(rng: Random) -> tuple[str, str]:
    """A tool that only says whether it worked."""
    if rng.random() < 0.6:
        good = ("ok", "done", "success", '{"ok": true}', '{"status": "ok"}', '{"success": true}', "true", "Sent.")
        return rng.choice(good), "Done."
    unknown = ("unknown " + rng.choice(JOBS), "invalid " + rng.choice(ANIMALS), "no such " + some_noun(rng))
    why = rng.choice(["not found", "timeout", "permission denied", *unknown])
    return rng.choice([json.dumps({"error": why}), "error: " + why, "Error: " + why]), f"The tool failed: {why}."


def some_value(rng: Random) -> object:
    """A cell of a result."""
    return rng.choice([made_up_word(rng), rng.randint(0, 9999), some_name(rng), rng.choice(COLORS), code_word(rng)])


def record(rng: Random) -> tuple[str, str]:
    """A JSON record, read out field by field."""
    known = words("name city color count price status id age title food country")
    keys = rng.sample([*known, made_up_word(rng, 1, 2), made_up_word(rng, 1, 2)], rng.randint(1, 3))
    row = {key: some_value(rng) for key in keys}
    return json.dumps(row), "The result is " + ", ".join(f"{key} {cell}" for key, cell in row.items()) + "."


def result_and_answer(rng: Random, tool: Tool, arguments: dict[str, object]) -> tuple[str, str]:
    """What the tool returns, and what the assistant says of it."""
    place = str(next(iter(arguments.values()), ""))
    if tool.result == "W":
        return weather_result(rng, place)
    if tool.result == "T":
        return time_result(rng, place)
    if tool.result == "S":
        number = rng.randint(-99, 99999)
        reports = (str(number), json.dumps({"result": number}), json.dumps({"value": number}))
        return rng.choice(reports), f"The result is {number}."
    roll = rng.random()
    if roll < 0.3:
        return outcome(rng)
    if roll < 0.6:
        text = rng.choice([str(some_value(rng)), some_words(rng, 1, 4), some_sentence(rng).rstrip(".")])
        wrapped = json.dumps({rng.choice(words("result answer output text value")): text}, ensure_ascii=False)
        return (text if rng.random() < 0.6 else wrapped), f"The result is {text}."
    return record(rng)


def variants(rng: Random, tool: Tool) -> list[str]:
    """A handful of resolved phrasings of the tool, slots still open."""
    return [pick_ask(rng, tool.asks) for _ in range(12)]
