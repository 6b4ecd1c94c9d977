"""Short definitions and the demo model's words about itself. All text is written for this project."""

from __future__ import annotations

from adapters.llama_cpp.demo.tables import rows

# One row per thing: names a user may type (the first is used with its article), then the answer.
DEFINITIONS = rows(
    """Python|Python is a programming language that is easy to read and popular for scripts, data and AI.
an API,API,application programming interface|
    An API is a set of rules by which one program asks another program for something.
a GPU,GPU,graphics card|A GPU is a processor that does many small calculations at once. It is used for graphics
    and for AI models.
a CPU,CPU,processor|A CPU is the main processor of a computer. It runs the instructions of programs.
a token,token,tokens|A token is a small piece of text, such as a word or a part of a word. Language models read
    and write tokens.
an LLM,LLM,large language model,LLMs,language model|
    An LLM is a large language model: a program that learnt from much text to predict the next token.
a gateway,gateway,an API gateway,inference gateway,AI gateway,LLM gateway|
    A gateway is a server that takes requests from clients and passes them on to models or other services.
the KV cache,KV cache,a KV cache,kv cache,kv-cache|
    The KV cache keeps the attention keys and values of earlier tokens, so that a model need not compute them
    again.
an inference server,inference server,model server|
    An inference server loads a trained model and answers requests with it.
inference,model inference|Inference means running a trained model to get an answer.
JSON,json|JSON is a simple text format for data, made of objects, lists, strings, numbers, true, false and null.
HTTP,http,HTTP protocol|HTTP is the protocol by which browsers and programs ask web servers for things.
HTTPS,https|HTTPS is HTTP over an encrypted connection.
GGUF,a GGUF file,gguf,GGUF file,GGUF model|
    GGUF is a file format that holds the weights and the settings of a language model for llama.cpp.
llama.cpp,llama cpp,llama-cpp|llama.cpp is a C++ library that runs language models on ordinary computers.
quantization,quantisation,a quantized model|
    Quantization stores the weights of a model with fewer bits, so that it is smaller and faster.
a prompt,prompt|A prompt is the text that you give to a language model.
a context window,context window,context length|
    A context window is the number of tokens that a model can see at once.
temperature,sampling temperature|Temperature sets how random the answers of a model are. Zero means always the
    most likely token.
top-p,top p,top_p,nucleus sampling|Top-p sampling picks only from the most likely tokens whose chances add up to
    p.
sampling|Sampling means choosing the next token at random by its probability.
streaming,token streaming|Streaming sends an answer piece by piece while it is being written.
server-sent events,SSE|Server-sent events are a way for a web server to send a stream of messages to a client.
a system prompt,system prompt|A system prompt is a message that tells a model how to behave.
a chat template,chat template|A chat template turns a list of messages into the text that a model reads.
tool calling,function calling,a tool call|Tool calling lets a model ask the program around it to run a function.
an embedding,embedding,embeddings|An embedding is a list of numbers that stands for the meaning of a text.
RAG,retrieval augmented generation|RAG means that a program first finds fitting documents and then gives them to
    the model with the question.
fine-tuning,fine tuning,finetuning|Fine-tuning means training a finished model a little more on new examples.
a neural network,neural network|A neural network is a program made of many simple units with weights that are
    learnt from examples.
a transformer,transformer,transformers|A transformer is a neural network that uses attention to relate the tokens
    of a text to each other.
attention|Attention lets a model look back at the earlier tokens that matter for the next one.
machine learning,ML|Machine learning means that a program learns from examples instead of fixed rules.
artificial intelligence,AI|Artificial intelligence means programs that do things which seem to need thinking.
deep learning|Deep learning is machine learning with neural networks of many layers.
a parameter,model parameter,parameters,a weight|A parameter is a number inside a model that is set by training.
a chatbot,chatbot|A chatbot is a program that talks with people.
OpenAI|OpenAI is a company that makes language models. Many servers offer an API of the same shape.
ChatGPT|ChatGPT is a chat service by OpenAI.
latency|Latency is the time that you wait for an answer.
throughput|Throughput is the amount of work done in a given time, for example tokens per second.
batching,continuous batching|Batching means working on several requests in one step to use the processor well.
a grammar,grammar-constrained decoding|A grammar describes which texts are allowed. A server can force a model to
    follow it.
LoRA,a LoRA adapter|LoRA is a small set of extra weights that changes the behaviour of a model.
speculative decoding|Speculative decoding lets a small model guess tokens that a large model then checks.
Linux|Linux is a free operating system that runs on most servers.
Windows|Windows is an operating system by Microsoft.
macOS|macOS is the operating system of Apple computers.
Docker|Docker is a tool that runs programs in containers.
a container,container|A container is a package with a program and all that it needs to run.
Kubernetes|Kubernetes is a system that runs containers on many machines.
Git,git|Git is a tool that keeps the history of source code.
GitHub|GitHub is a web site where people share code with Git.
a database,database|A database is a program that stores data so that it can be found again.
SQL|SQL is a language for asking questions to databases.
SQLite|SQLite is a small database that lives in a single file.
a server,server|A server is a program or a computer that answers requests from others.
a client,client|A client is a program that sends requests to a server.
a browser,web browser,browser|A browser is a program that shows web pages.
the internet,internet|The internet is a network that joins computers all over the world.
a router,router|A router is a device or a program that sends messages on the right way.
a proxy,proxy|A proxy is a server that passes requests on for someone else.
a firewall,firewall|A firewall blocks network traffic that is not allowed.
an operating system,operating system|An operating system is the program that runs a computer and its other
    programs.
an algorithm,algorithm|An algorithm is a list of clear steps that solves a problem.
a compiler,compiler|A compiler turns source code into a program that a machine can run.
a variable,variable|A variable is a name for a value in a program.
a function,function|A function is a named piece of a program that takes values and returns a result.
a loop,loop|A loop repeats a part of a program.
a bug,bug,software bug|A bug is a mistake in a program.
a programming language,programming language|A programming language is a language in which people write programs.
JavaScript|JavaScript is the programming language of web pages.
Rust|Rust is a programming language that is fast and guards against memory mistakes.
C++|C++ is a fast programming language used for large programs.
Java|Java is a programming language used for many business programs.
Go,golang|Go is a simple programming language made for servers.
HTML|HTML is the language in which web pages are written.
CSS|CSS is a language that sets the look of web pages.
YAML|YAML is a text format for settings that is easy for people to read.
XML|XML is a text format for data that uses tags.
an API key,API key|An API key is a secret text that shows a server who is asking.
encryption|Encryption turns a message into secret text that only the right key can open.
a password,password|A password is a secret word that proves who you are.
an email,email|An email is a letter sent by computer.
open source,open source software|Open source means that everyone may read, use and change the source code.
a license,license|A license says what you may do with a work such as software.
RAM,memory|RAM is the fast working memory of a computer.
a file,file|A file is a named piece of data on a disk.
a byte,byte|A byte is eight bits.
a bit,bit|A bit is a zero or a one.
a computer,computer|A computer is a machine that follows programs.
a phone,smartphone,phone|A phone is a device for talking with people who are far away.
a robot,robot|A robot is a machine that can do work by itself.
a keyboard,keyboard|A keyboard is a set of keys for typing text.
science|Science is the careful study of how the world works.
mathematics,math,maths|Mathematics is the study of numbers, shapes and patterns.
physics|Physics is the science of matter, energy and forces.
chemistry|Chemistry is the science of substances and how they change.
biology|Biology is the science of living things.
history|History is the study of the past.
gravity|Gravity is the force that pulls things towards each other.
energy|Energy is the ability to do work.
electricity|Electricity is a form of energy that flows through wires.
light|Light is a form of energy that we can see.
an atom,atom|An atom is a very small building block of matter.
a molecule,molecule|A molecule is a group of atoms that stick together.
water|Water is a clear liquid that all living things need.
air|Air is the mix of gases that we breathe.
oxygen|Oxygen is a gas that we need to breathe.
fire|Fire is hot, bright burning gas.
ice|Ice is frozen water.
rain|Rain is water that falls from clouds.
snow|Snow is frozen water that falls in soft white flakes.
a cloud,cloud|A cloud is a mass of tiny drops of water in the sky.
a rainbow,rainbow|A rainbow is an arc of colors in the sky, made by sunlight and rain.
the sun,sun|The Sun is the star at the center of our solar system.
the moon,moon|The Moon goes around the Earth and shines at night.
a star,star|A star is a huge ball of hot, glowing gas.
a planet,planet|A planet is a large round body that goes around a star.
the earth,earth|The Earth is the planet on which we live.
Mars|Mars is the red planet, the fourth from the Sun.
a galaxy,galaxy|A galaxy is a huge group of stars.
a black hole,black hole|A black hole is a place in space where gravity is so strong that not even light gets out.
the universe,universe|The universe is everything there is: all space, time, matter and energy.
a volcano,volcano|A volcano is a mountain from which hot melted rock can flow.
an earthquake,earthquake|An earthquake is a shaking of the ground.
an island,island|An island is land with water all around it.
a river,river|A river is water that flows over land to the sea.
an ocean,ocean,the sea|An ocean is a very large body of salt water.
a mountain,mountain|A mountain is a very high piece of land.
a desert,desert|A desert is a dry place with very little rain.
a forest,forest|A forest is a large area full of trees.
a tree,tree|A tree is a tall plant with a trunk of wood.
a flower,flower|A flower is the colorful part of a plant that makes seeds.
photosynthesis|Photosynthesis is how plants use sunlight to make food from water and air.
a cell,cell|A cell is the smallest living part of a plant or an animal.
DNA|DNA is a molecule that holds the plan of a living thing.
a virus,virus|A virus is a tiny thing that makes copies of itself inside living cells.
a heart,the heart,heart|The heart is the muscle that pumps blood through the body.
the brain,brain,a brain|The brain is the organ with which we think and feel.
a mammal,mammal|A mammal is an animal that feeds its young with milk.
a dog,dog|A dog is a friendly animal that lives with people and barks.
a cat,cat|A cat is a small animal with soft fur that says meow.
an elephant,elephant|An elephant is a very large grey animal with a long trunk.
a whale,whale|A whale is a huge mammal that lives in the sea.
a penguin,penguin|A penguin is a black and white bird that swims but cannot fly.
a bee,bee|A bee is an insect that makes honey.
a dinosaur,dinosaur,dinosaurs|Dinosaurs were animals that lived millions of years ago.
an apple,apple|An apple is a round fruit that grows on trees.
bread|Bread is food made from flour and water and baked in an oven.
chocolate|Chocolate is a sweet brown food made from cocoa beans.
coffee|Coffee is a hot drink made from roasted beans.
tea|Tea is a drink made from leaves and hot water.
pizza|Pizza is a flat bread with tomato, cheese and other things on top.
music|Music is sound made in a pleasing order.
art|Art is the making of things that people find beautiful or moving.
a book,book|A book is a set of pages with text to read.
a poem,poem,poetry|A poem is a short text with rhythm and often with rhymes.
a story,story|A story tells what happened to someone, real or not.
a school,school|A school is a place where people learn.
a family,family|A family is a group of people who belong together.
a friend,friend|A friend is a person whom you like and trust.
love|Love is a strong and warm feeling for someone.
happiness|Happiness is the feeling of being glad.
money|Money is what people use to pay for things.
time|Time is what clocks measure: seconds, minutes, hours and days.
a clock,clock|A clock is a machine that shows the time.
a car,car|A car is a vehicle with four wheels and an engine.
a train,train|A train is a row of wagons that runs on rails.
an airplane,airplane,plane|An airplane is a machine with wings that flies.
a bicycle,bicycle,bike|A bicycle is a vehicle with two wheels that you drive with your feet.
football,soccer|Football is a game in which two teams kick a ball into goals.
chess|Chess is a board game for two players with kings, queens and pawns.
a doctor,doctor|A doctor is a person who helps sick people.
a teacher,teacher|A teacher is a person who helps others to learn.
a triangle,triangle|A triangle is a shape with three sides.
a circle,circle|A circle is a perfectly round shape.
a square,square|A square is a shape with four equal sides.
a prime number,prime number|A prime number can be divided only by one and by itself.
democracy|Democracy is a way of government in which the people vote.
Europe|Europe is a continent with countries such as France, Germany and Italy.
Africa|Africa is a large, warm continent with more than fifty countries.
Paris|Paris is the capital of France.
London|London is the capital of England and of the United Kingdom.
Berlin|Berlin is the capital of Germany.
Rome|Rome is the capital of Italy.
Tokyo|Tokyo is the capital of Japan."""
)

# One row per intent: ways to say it, then the answer.
SMALL_TALK = rows(
    """Hello|Hi|Hey|Hello there|Hi there|Hey there|Good morning|Good evening|Good afternoon|Good day|Greetings|Howdy|Yo|
    hi :)|Hello, world|hello hello|Hi!|hello!|hey!|Hiya|Hi bot|Hello model|Helo|helllo|
    hallo=Hello! How can I help you?
How are you|How are you today|How are you doing|How is it going|How do you do|What's up|whats up|How r u|
    Hello, how are you|Hi, how are you|Hi how are you doing today|How do you feel|are you ok|
    Are you okay=I am fine, thank you. How can I help you?
I am fine|I'm good|I am well, thanks|I'm fine, thanks|Good, and you|pretty good|I feel great|
    I am happy today=I am glad to hear that. How can I help you?
I am sad|I feel bad|I am not well|I am tired|I had a bad day|I feel lonely|
    I'm bored=I am sorry to hear that. Shall I tell you a story or a joke?
Thank you|Thanks|Thanks a lot|Thank you very much|thx|Many thanks|Great, thanks|Cheers|Thank you so much|ty|
    thanks!|Perfect, thank you|thanks for your help|That helps, thanks=You are welcome!
Goodbye|Bye|Bye bye|See you|See you later|Good night|Ciao|Farewell|See you tomorrow|I have to go|I must go now|
    bye!|Thanks, bye|talk to you later|That is all=Goodbye! Have a nice day.
Yes|Ok|Okay|Sure|Yes please|Alright|Fine|Good|Great|Nice|Cool|Well done|Good job|Awesome|Wow|I see|Interesting|
    lol|haha|You are great|I like you|I love you|good bot=Good. What would you like next?
No|No thanks|Nope|Not really|Nothing|No, thank you|never mind|nevermind|forget it=All right. Ask me any time.
You are wrong|That is wrong|That is not correct|No, that is wrong|Are you sure|really|are you serious|wrong|
    You made a mistake|that's false|bad bot|You are stupid|You are dumb|
    this is nonsense=I am sorry. I am only a tiny demo model and I can be wrong.
Sorry|I am sorry|Excuse me|Pardon|my mistake|oops=No problem.
Who are you|What are you|What is your name|whats your name|What's your name|Tell me about yourself|
    Introduce yourself|Who am I talking to|What model are you|Which model is this|what model is this|
    Which model are you|your name|who r u|Are you a language model|what kind of model are you|Describe yourself|
    What should I call you|Do you have a name|What is gateway-demo|
    and who are you=I am gateway-demo, a tiny demonstration model of this gateway. I have only a few million
    parameters and I can be wrong.
What can you do|What can you do for me|How can you help me|Help|help me|help!|What do you know|
    What are you able to do|What are your skills|What are your capabilities|List your abilities|
    what are you good at|How do I use you|What can I ask you|What should I ask you|What do you do|can you help me|
    Can you help|I need help|I need your help|What is your purpose|
    why do you exist=I can chat a little, answer simple questions, add small numbers, tell short stories, write
    small JSON objects and call tools. I am a tiny demo model, so load a larger GGUF model for real work.
Are you ChatGPT|Are you GPT-4|Are you Claude|Are you Llama|Are you Gemini|are you gpt|Are you made by OpenAI|
    Are you Qwen|Are you Mistral|Are you based on GPT|
    are you chat gpt=No. I am gateway-demo, a tiny demonstration model of this gateway.
Are you human|Are you a human|Are you real|Are you a person|Are you alive|Are you a robot|Are you a bot|
    Are you an AI|Are you conscious|Do you have feelings|Can you think|are you a machine|Do you sleep|
    Do you dream|how old are you|where do you live|Where are you from|
    do you have a body=I am a small computer program, not a person.
Who made you|Who created you|Who built you|Who trained you|Who is your maker|Where do you come from|
    How were you made|How were you trained|What were you trained on|what is your training data|
    When were you trained|what data did you learn from|How did you learn|
    Who wrote your text=I was trained on synthetic text by a script that comes with this gateway.
How big are you|How many parameters do you have|How large are you|what is your size|How many layers do you have|
    Are you a large model|How small are you|are you small|Why are you so small|
    how many weights do you have=I have only a few million parameters. Real models have billions.
Can you be wrong|Do you make mistakes|Can I trust you|Are you reliable|Are your answers correct|
    Are you always right|can i rely on you|Are you smart|Are you intelligent|how good are you|
    How accurate are you|Do you hallucinate|why are you so dumb|
    Should I use you in production=I can be wrong. I am a tiny demo model, so please check my answers or load a
    larger GGUF model.
Do you need the internet|Do you need internet|Are you online|Do you work offline|Can you search the web|
    Can you browse the internet|Where do you run|Do you run locally|Where are you running|
    Can you see web pages=I run offline, on the machine of this gateway. I cannot look at the internet.
How do I load another model|How do I load a larger model|How can I use a bigger model|How do I use a real model|
    How do I change the model|How do I add a model|Where can I get a better model|How do I load a GGUF model|
    can i use another model|how to load a model|How do I use my own model|
    which model should i use instead=Download a GGUF model and add its path to the configuration of the gateway.
    Then ask for it by its name.
What time is it|What is the time|What day is it|What is the date today|What is today's date|what year is it|
    What day is today|current time|tell me the time|
    whats the date=I cannot see a clock or a calendar, so I do not know.
What is the weather|How is the weather|What is the weather today|Is it raining|Will it rain tomorrow|
    how is the weather today|What's the weather like|is it cold outside|weather|What is the weather in Paris|
    What's the weather like in London|How is the weather in Berlin|weather in Rome|
    What is the weather in Tokyo today=I cannot see the weather without a tool.
Do you remember me|Do you know me|Do you know who I am|Who am I|What did we talk about yesterday|
    do you remember our last talk=I only see this conversation, and nothing before it.
Do you speak German|Do you speak French|Do you speak Spanish|Which languages do you speak|
    What languages do you know|Can you speak Chinese|do you speak english|
    do you understand italian=I speak simple English and know a few words of other languages.
What is your favorite color|What is your favourite animal|What is your favorite food|Do you like pizza|
    Do you like music|do you like cats|What do you like|do you have hobbies|What is your favorite movie|
    do you like me|are you happy|Do you have friends=I am a program, so I have no likes of my own. What do you
    like?
Test|test|Testing|This is a test|test 123|ping|Is this working|Are you there|Can you hear me|does this work|
    Hello? Are you there|are you working|testing testing|anybody there|is anyone there|Say something|Talk to me|
    say anything=I am here and working.
What is the capital|What is the capital of|the capital of|what is|tell me|what|how|why|who|when|where|?|...|!|hm|
    and|hmm|??|huh|question|I have a question|can I ask you something|May I ask a question|
    let me ask you something=Please ask me a full question."""
)
