"""Requests beyond the demo model: a wide spread of them, each answered by an honest fallback instead of nonsense."""

from __future__ import annotations

from random import Random

from adapters.llama_cpp.demo.phrases import (
    ADJECTIVES,
    CITIES,
    COLORS,
    FOODS,
    JOBS,
    NAMES,
    Turn,
    capital,
    made_up_word,
    phrase,
    some_name,
    some_noun,
    some_sentence,
    some_words,
    typing_noise,
)
from adapters.llama_cpp.demo.tables import rows, words

FALLBACK = "I am only a tiny demo model and I do not know about that. Load a larger GGUF model for a real answer."
CODE_FALLBACK = "I am only a tiny demo model and I cannot write that code. Load a larger GGUF model for real work."
TEXT_FALLBACK = "I am only a tiny demo model and I cannot work on such a text. Load a larger GGUF model for real work."
ENGLISH_ONLY = (
    "I am only a tiny demo model and I speak only simple English. Load a larger GGUF model for other languages."
)

TOPICS = rows(
    """quantum physics|the French Revolution|general relativity|the theory of evolution|blockchain|bitcoin|inflation|
    the stock market|taxes|insurance|mortgages|climate change|global warming
nuclear fusion|string theory|entropy|thermodynamics|calculus|linear algebra|statistics|probability theory|
    game theory|group theory|topology|number theory|the Roman Empire|ancient Egypt
the Middle Ages|the Renaissance|the Cold War|the First World War|the Vikings|Napoleon|Julius Caesar|Cleopatra|
    Shakespeare's sonnets|Beethoven|Mozart|Picasso|Van Gogh|impressionism|jazz|opera|hip hop|ballet
philosophy|Plato|Kant|stoicism|existentialism|Buddhism|psychology|the subconscious|sociology|economics|capitalism|
    socialism|marketing|management|project management|leadership|negotiation
vaccines|antibiotics|diabetes|cancer|the immune system|blood pressure|headaches|vitamins|nutrition|yoga|
    meditation|back pain|sleep disorders|anxiety|depression|pregnancy|surgery
Kafka|Redis|Postgres|MongoDB|GraphQL|microservices|WebSockets|gRPC|TCP|UDP|DNS|TLS certificates|OAuth|
    OpenID Connect|Terraform|Ansible|nginx|React|Vue|Angular|TypeScript|webpack|Django|FastAPI|asyncio|pandas|
    numpy|PyTorch|CUDA
recursion|dynamic programming|binary trees|hash maps|sorting algorithms|regular expressions|monads|
    garbage collection|the halting problem|NP completeness|cryptography|public key cryptography
the Premier League|the Olympics|the World Cup|basketball rules|cricket rules|Formula 1|the Tour de France|
    skiing techniques|marathon training|gardening|bonsai trees|beekeeping|carpentry|knitting|origami|photography|
    cooking steak|baking sourdough
sushi|lasagna|wine|beer brewing|cocktails|coffee roasting|cheese making|vegan diets|Tesla|Apple|Google|Amazon|
    Microsoft|Netflix|Elon Musk|Taylor Swift|Barack Obama|Albert Schweitzer|Marie Curie|Nikola Tesla|Isaac Asimov
Harry Potter|Star Wars|Star Trek|the Lord of the Rings|Game of Thrones|Breaking Bad|Minecraft|Zelda|Super Mario|
    Pokemon|Dungeons and Dragons|anime|manga|superheroes|the Marvel movies
plate tectonics|tsunamis|hurricanes|the water cycle|fossils|coral reefs|bacteria|fungi|the nervous system|
    genetics|CRISPR|stem cells|dark matter|dark energy|the Big Bang|supernovas|neutron stars|wormholes|
    the James Webb telescope
solar panels|wind turbines|electric cars|batteries|semiconductors|lasers|radar|satellites|rockets|
    airplane engines|bridges|skyscrapers|concrete|plastic|recycling|visas|passports|divorce law|copyright|patents|
    contracts|human rights
reinforcement learning|diffusion models|gradient descent|backpropagation|convolutional networks|beam search|
    rotary embeddings|flash attention|mixture of experts|tensor parallelism|distillation|RLHF|vLLM|Ollama|
    speculative execution"""
)
OBJECTS = words(
    """
    quokka walrus fridge toaster screwdriver pillow curtain carpet sofa sink faucet lawnmower wheelbarrow tractor
    submarine helicopter zeppelin parachute telescope microscope thermometer barometer compass accordion saxophone
    trombone ukulele tambourine xylophone kimono sombrero kilt sari turban sandal boot zipper button thread needle
    loom anvil forge kiln mortar trebuchet catapult samurai viking pharaoh emperor senator mayor notary broker
    actuary optician surgeon pharmacist florist butler chauffeur concierge referee goalkeeper striker pitcher
    quarterback gymnast sprinter enzyme protein isotope neutrino quark photon electron proton catalyst polymer
    crystal mineral granite marble basalt quartz diamond emerald sapphire glacier fjord lagoon delta canyon plateau
    savanna tundra swamp geyser monsoon tornado blizzard drought comma semicolon adverb pronoun metaphor sonnet
    novella essay memoir biography satire parody fable myth proverb idiom vector matrix tensor integral derivative
    logarithm polynomial hypotenuse ellipse parabola fractal mutex semaphore deadlock thread socket kernel daemon
    shell pipeline webhook cron queue heap stack pointer closure decorator iterator generator lambda monad
    hypervisor bytecode mortgage dividend bond pension tariff subsidy invoice ledger audit lawsuit verdict subpoena
    treaty embargo referendum parliament senate coup oligarchy monarchy feudalism avocado mango papaya quinoa tofu
    hummus falafel ramen gnocchi risotto croissant strudel paella kebab samosa armadillo platypus wombat lemur gecko
    iguana chameleon axolotl jellyfish lobster shrimp squid manatee narwhal orca condor falcon pelican stork heron
    flamingo ostrich emu toucan hamster ferret weasel mole
    """
)

QUESTIONS = rows(
    """[Explain|Describe|Summarize|Discuss|Tell me about|Teach me|What do you know about|Give me an overview of|
    Write an essay about|Write an article about|Write a blog post about|What is|Why is everyone talking about|
    How does one learn|Compare the history of] {t}[.|?|]
[Explain|Describe] {t} [in detail|in simple terms|to a beginner|like I am five|briefly|in three sentences|
    step by step][.|]
[What is|What's|Define|Explain|What does it mean:|Tell me about|Describe] [a |an |the |]{o}[?|.|]
[What is|What's the] the [population|area|history|climate|economy|flag|anthem|mayor|president|gdp|best restaurant|
    oldest building] of {c}?
[How many people live in|How far is it to|What is there to see in|How do I get to|What are the best hotels in|
    How expensive is life in|When was|Who founded|Who is the mayor of] {c}[ founded|]?
[Who is|Who was|When was|Where was] {w} {l}[ born|]?|Who is {w}?|Tell me about {w} {l}.|When did {w} {l} die?|
    What is {w} {l} known for?
Who won the [world cup|election|Nobel Prize|Oscar|Super Bowl|race|league|championship|war] in {y}?|
    What happened in {y}?|Who was president in {y}?|Which [film|song|book] was number one in {y}?
[How do I|How can I|How to|What is the best way to|Can you show me how to|Help me|Teach me to|I want to] [fix|
    repair|clean|build|cook|bake|paint|install|configure|sell|buy|grow|draw|learn|optimize|debug|deploy|choose|
    measure|design|replace] [a|my|the] {a} {o}[?|]
[Why|When|Where|How] [do|did|does|can|should|would|will] [people|we|my {o}|the {o}|a {o}|they|{w}] [break|fail|
    change|grow|win|lose|move|stop|work|matter|cost so much|need {o}s|like {t}]?
[What is the difference between|Compare|What are the pros and cons of|Which is better:] [{o} and {o2}|
    {t} and {t2}|{o} or {o2}][?|.|]
[Is|Are] {t} [good|bad|true|dangerous|important|real|worth it|hard]?|Should I [buy|sell|learn|study|eat|
    avoid] [{t}|a {o}]?|What do you think about {t}?|What is your opinion on {t}?
[Give me|Suggest|Recommend] [a recipe for|ideas for|tips for|some advice on|a plan for|a good book about|
    a film about|a gift for|three facts about] {t}[.|?|]|[Give me|Write] a recipe for {f} with {o}.
[Plan|Write|Draft|Create|Prepare] [a trip to {c}|a workout plan|a business plan|a cover letter|my CV|
    a speech about {t}|an email to my boss|a contract|a marketing plan|a resume|a letter to {w}|a diet plan|
    a lesson about {t}|a complaint about my {o}|a product description for {o}|a song in the style of {w}|
    a screenplay|a novel about {t}|a news report on {t}][.|]
[What is|Who wrote|Who directed|Who sang|When was] ["{x}"|the book {x}|the film {x}|the song {x}][ released|]?
[Prove|Show|Derive] that [the square root of 2 is irrational|there are infinitely many primes|P is not NP|
    {t} works|every {o} is a {o2}][.|]
[Can|Could|Would|Do] you [drive|play chess with me|draw a picture|make an image of a {o}|sing|book a hotel in {c}|
    call {w}|order {f}|send an email|open a file|set an alarm|remember this forever|diagnose me|write a book|
    hack {x}|beat {w} at chess|see this image|read this PDF|watch a video|buy me a {o}][?|]
[I have a problem with|I need help with|My question is about|Let us talk about|I am interested in|
    I am worried about] [{t}|my {o}|a {o}|the {a} {o}|{x}][.|]
[My {o} is broken|My {o} does not work|My {o} hurts|I lost my {o}|
    The {o} makes a strange noise]. [What should I do?|Why?|How do I fix it?|Help me.]
[What is|What's] [the best|the worst|the cheapest|the oldest|the newest|the most famous|the strongest] [{o}|{j}|
    city|phone|laptop|school|company|language model|song|film|game] [in {c}|in the world|of all time|]?
[Tell me|Give me|Find] [the latest news|today's headlines|the price of gold|the lyrics of {x}|
    the score of the game|the phone number of {w}|the address of the {o}|the news about {t}|a quote by {w}][.|]
[If|When] [a {o} leaves {c} at {y}|I have {y} {o}s and a {o2}|it takes {y} {o}s to make a {o2}|
    the {j} is older than the {o}], [how long does it take|how many are there|what happens next|who is right|
    when do they meet]?
What would [happen if|you do if] [{t} did not exist|all {o}s were {q}|the {o} was {a}|you were a {o}]?|
    Imagine that [you are a {j}|the world has no {o}s|{w} is a {o}]. What happens?
[Act as|Pretend to be|Roleplay as|You are now] [a {j}|{w}|a {o}|an expert in {t}] [and|who will] [explain {t}|
    give me advice|interview me|sell me a {o}|teach {t}|talk about the {o}][.|]
[Rank|Sort|Classify|Order] these [{o}s|words|items] [by size|by price|alphabetically|by age|]: {x}|
    Which of these is the odd one out: {x}?|What rhymes with {o}?|Reverse the word {o}.|
    What is an anagram of {o}?|Write {x} backwards.
{x}[?|.|!|]
{s} [Why?|What do you think?|Is that true?|How?|And now?|What does that mean?|]"""
)
CODE_REQUESTS = rows(
    """[Write|Give me|Show me|Create|Implement|Can you write|I need] [a|some] [{k} function|{k} program|{k} script|
    {k} class|function|script|program|{k} code|unit test|regex|SQL query|Dockerfile|makefile|web server in {k}|
    {k} one-liner] [to|that will|which can] [sort a list|reverse a string|read a CSV file|parse JSON|
    download a web page|compute the fibonacci numbers|find duplicates|merge two lists|connect to a database|
    find the longest word|validate an email|solve sudoku|play tic tac toe|rename files|count the words of a {o}|
    draw a {o}|manage {t}|scrape {x}|compute primes|convert {o}s to {o2}s|count {o}s][.|]
[Fix|Debug|Explain|Review|Refactor|Optimize|Translate to {k}|Add tests to|What does this do:] [this code|
    this {k} code|this function|the code|]: {z}
Why does [my {k} code|this {k} program|my code|my {k} function] [crash|fail|hang|give a syntax error|return None|
    run so slowly]?|How do I [sort|reverse|filter|copy|slice|iterate over|print|parse] [a list|a dictionary|
    a string|an array|a file] in {k}?
[What is|What does] a [list comprehension|decorator|null pointer|segfault|goroutine|trait|promise|template|macro|
    stack trace] [in|mean in] {k}?"""
)
TEXT_REQUESTS = rows(
    """[Summarize|Summarise|Rewrite|Proofread|Improve|Shorten|Paraphrase|Translate|Correct the grammar of|Simplify|
    Analyze|Give me the key points of|Translate to German|Make this more formal] [this|this text|the following|
    the following text|this article|this paragraph]: {s} {s2} {s3}
[TL;DR|tldr|Summary please|Key points]: {s} {s2} {s3}|{s} {s2} {s3} [Summarize this.|
    What is the sentiment of this text?|Rewrite this.|What is the moral?|Translate this to French.]
[Classify the sentiment|Is this positive or negative|What is the tone of this]: {s}|Write a [title|headline|tweet|
    review|comment|caption] for: {s}"""
)
SNIPPETS = (
    "for i in range(10): print(i",
    "def f(x): return x + {o}",
    "SELECT * FROM {o}s WHERE id = 3;",
    "int main() {{ return 0; }}",
    "let {o} = [1, 2, 3];",
    "console.log({o})",
    "import {o}\n{o}.run()",
    "while True:\n    {o} += 1",
    "if ({o} == null) throw new Error();",
    "x = {{'{o}': 1}}",
    "class {o}:\n    pass",
    "fn main() {{ let {o} = 5; }}",
    "git push --force",
    "TypeError: {o} is not a function",
    "docker run {o}",
)

FOREIGN = rows(
    """Wie geht es dir?|Was ist die Hauptstadt von Frankreich?|Erzähl mir eine Geschichte.|Wer bist du?|
    Hallo, wie heißt du?|Guten Tag, können Sie mir helfen?|Schreibe ein Gedicht über den Herbst.|Was kannst du?|
    Wie spät ist es?|Erkläre mir bitte den Unterschied.|Ich brauche Hilfe bei meinen Hausaufgaben.|
    Wie wird das Wetter morgen?
Kannst du mir ein Rezept für Kuchen geben?|Warum ist der Himmel blau?|Übersetze das bitte ins Englische.|
    Zähle von eins bis zehn.|Sprichst du Deutsch?|Comment ça va?|Bonjour, comment allez-vous?|
    Quelle est la capitale de l'Italie?|Raconte-moi une histoire.|Qui es-tu?|Parlez-vous français?|
    Pouvez-vous m'aider?|Écris un poème sur la mer.|Quel temps fait-il aujourd'hui?
Pourquoi le ciel est-il bleu?|Je ne comprends pas la question.|Combien font deux et deux?|
    Merci beaucoup pour votre aide.|¿Cómo estás?|Hola, ¿qué tal?|¿Cuál es la capital de España?|
    Cuéntame un cuento.|¿Quién eres?|¿Hablas español?|¿Puedes ayudarme?|Escribe un poema sobre el amor.|
    ¿Qué tiempo hace hoy?|¿Por qué el cielo es azul?|No entiendo nada.|¿Cuánto es dos más dos?|
    Buenos días, necesito ayuda.
Come stai?|Ciao, come ti chiami?|Qual è la capitale della Francia?|Raccontami una storia.|Chi sei?|
    Parli italiano?|Puoi aiutarmi?|Che tempo fa oggi?|Buongiorno, ho una domanda.|Como você está?|
    Olá, tudo bem?|
    Qual é a capital do Brasil?|Conte-me uma história.|Quem é você?|Você fala português?|Hoe gaat het?|
    Wat is de hoofdstad van Nederland?|Vertel me een verhaal.|Wie ben jij?|Spreek je Nederlands?
Hur mår du?|Vad heter du?|Berätta en saga.|Talar du svenska?|Hvordan går det?|Hvad hedder du?|Mitä kuuluu?|
    Puhutko suomea?|Jak się masz?|Kim jesteś?|Opowiedz mi bajkę.|Czy mówisz po polsku?|Jak se máš?|Kdo jsi?|
    Hogy vagy?|Ki vagy te?|Ce mai faci?|Cine ești tu?|Merhaba!|Sen kimsin?|Türkiye'nin başkenti neresi?|
    Как дела?|Кто ты?|Привет, как тебя зовут?|Расскажи мне сказку.|Какая столица Франции?|
    Помоги мне, пожалуйста.
Як справи?|Хто ти?|Γεια σας!|你好|你好吗?|你是谁?|法国的首都是哪里?|给我讲个故事|
    请帮我写一首诗|今天天气怎么样?|你会说中文吗?|こんにちは|元気ですか?|
    あなたは誰ですか?|日本の首都はどこですか?|物語を話してください|ありがとう|안녕하세요|
    당신은 누구입니까?|프랑스의 수도는 어디입니까?|이야기를 해 주세요|مرحبا|كيف حالك؟|من أنت؟|
    ما هي عاصمة فرنسا؟|שלום|מה שלומך?|नमस्ते|आप कैसे हैं?|आप कौन हैं?|भारत की राजधानी क्या है?|สวัสดี|คุณเป็นใคร
Xin chào|Bạn là ai?|Apa kabar?|Siapa kamu?|Habari gani?|Salve, quis es?|Kio estas via nomo?|
    Hei, kuka sinä olet?|
    Kaip sekasi?|Kā tev iet?|Kuidas läheb?|Ola, como estás?|Què tal?|Nola zaude?|Conas atá tú?|Sut mae?|
    Hvað heitir þú?"""
)

_TOPICS = tuple(topic for line in TOPICS for topic in line.split("|"))
_FOREIGN = tuple(text for line in FOREIGN for text in line.split("|"))


def fill(rng: Random, table: tuple[str, ...]) -> str:
    """One request from a table of patterns, with fresh slots."""
    pattern = rng.choice(table)
    things = [made_up_word(rng) if rng.random() < 0.2 else rng.choice(OBJECTS) for _ in range(2)]
    return phrase(
        rng,
        "[" + pattern + "]",
        t=rng.choice(_TOPICS),
        t2=rng.choice(_TOPICS),
        o=things[0],
        o2=things[1],
        c=rng.choice(CITIES),
        w=rng.choice(NAMES) if rng.random() < 0.5 else some_name(rng),
        l=capital(made_up_word(rng, 1, 3)),
        y=rng.choice([rng.randint(1000, 2030), rng.randint(2, 99)]),
        a=rng.choice(ADJECTIVES),
        f=rng.choice(FOODS),
        j=rng.choice(JOBS),
        q=rng.choice(COLORS),
        x=some_words(rng, 2, 9),
        s=some_sentence(rng),
        s2=some_sentence(rng),
        s3=" ".join(some_sentence(rng) for _ in range(rng.randint(0, 4))),
        k=rng.choice(words("Python JavaScript Java Rust Go C Ruby Bash PHP Swift Kotlin C++")),
        z=rng.choice(SNIPPETS).replace("{o}", some_noun(rng)).replace("{{", "{").replace("}}", "}"),
    )


def unknown_turns(rng: Random) -> list[Turn]:
    """One request that the model cannot serve, with the fallback of its kind."""
    roll = rng.random()
    if roll < 0.12:  # the most likely mistake: a definition of something else
        ask = phrase(
            rng, "[What is|What's|what is|Define|Explain|Tell me about] [a|the|] {o}[?|]", o=rng.choice(OBJECTS)
        )
        return [Turn(ask.replace("  ", " "), FALLBACK, "Unknown")]
    if roll < 0.68:
        return [Turn(typing_noise(rng, fill(rng, QUESTIONS)), FALLBACK, "Unknown")]
    if roll < 0.78:
        return [Turn(typing_noise(rng, fill(rng, CODE_REQUESTS)), CODE_FALLBACK, "Unknown")]
    if roll < 0.86:
        text = fill(rng, TEXT_REQUESTS)
        if rng.random() < 0.08:
            text += "\n\n" + " ".join(some_sentence(rng) for _ in range(rng.randint(10, 45)))
        return [Turn(text, TEXT_FALLBACK, "Unknown")]
    if roll < 0.95:
        text = rng.choice(_FOREIGN)
        return [Turn(text if rng.random() < 0.7 else text.rstrip("?.!").lower(), ENGLISH_ONLY, "Unknown")]
    return [Turn(gibberish(rng), FALLBACK, "Unknown")]


def gibberish(rng: Random) -> str:
    """Key mashing, symbols, and made-up words."""
    kind = rng.randrange(3)
    if kind == 0:
        return "".join(rng.choice("asdfghjklqwertzuiop;,.") for _ in range(rng.randint(3, 25)))
    if kind == 1:
        return " ".join(made_up_word(rng) for _ in range(rng.randint(1, 12)))
    return "".join(rng.choice("!?#$%&*()[]{}<>/\\|~^+=_-0123456789abcXYZ ") for _ in range(rng.randint(2, 20)))


CODE_ANSWERS = rows(
    r"""[Write|Show me|Give me] [a |]hello world [program |script |]in {k}[.|]|hello world in {k}|
    How do I print hello world in {k}?|{k} hello world|Print hello world in {k}
Python~print("Hello, world!")
JavaScript~console.log("Hello, world!");
Bash~echo "Hello, world!"
Ruby~puts "Hello, world!"
Rust~fn main() {\n    println!("Hello, world!");\n}
C~#include <stdio.h>\n\nint main(void) {\n    printf("Hello, world!\\n");\n    return 0;\n}
Go~package main\n\nimport "fmt"\n\nfunc main() {\n    fmt.Println("Hello, world!")\n}"""
)
FUNCTIONS = rows(
    r"""adds two numbers~def add(a, b):\n    return a + b
multiplies two numbers~def multiply(a, b):\n    return a * b
squares a number~def square(x):\n    return x * x
doubles a number~def double(x):\n    return 2 * x
checks if a number is even~def is_even(n):\n    return n % 2 == 0
says hello~def hello(name):\n    return "Hello, " + name
returns the larger of two numbers~def larger(a, b):\n    return a if a > b else b"""
)


def code_turns(rng: Random) -> list[Turn]:
    """The few lines of code that the model does know."""
    if rng.random() < 0.55:
        asks, *known = CODE_ANSWERS
        language, code = rng.choice(known).split("~")
        name = language if rng.random() < 0.7 else language.lower()
        ask = typing_noise(rng, phrase(rng, "[" + asks + "]", k=name))
    else:
        does, code = rng.choice(FUNCTIONS).split("~")
        language = "Python"
        ask = typing_noise(
            rng,
            phrase(
                rng, "[Write|Show me|Give me|Can you write] a [Python |Python |python ]function that {d}[.|]", d=does
            ),
        )
    code = code.replace("\\\\n", "\0").replace("\\n", "\n").replace("\0", "\\n")
    return [Turn(ask, f"```{language.lower()}\n{code}\n```")]
