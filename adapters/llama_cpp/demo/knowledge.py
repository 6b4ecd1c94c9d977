"""What the demo model knows by heart: tables of facts, one row per fact. All text is written for this project."""

from __future__ import annotations

from adapters.llama_cpp.demo.tables import rows, words

CAPITALS = """France:Paris Germany:Berlin Italy:Rome Spain:Madrid Portugal:Lisbon England:London Ireland:Dublin
Scotland:Edinburgh Norway:Oslo Sweden:Stockholm Denmark:Copenhagen Finland:Helsinki Iceland:Reykjavik
Netherlands:Amsterdam Belgium:Brussels Switzerland:Bern Austria:Vienna Poland:Warsaw Hungary:Budapest
Greece:Athens Turkey:Ankara Russia:Moscow Ukraine:Kyiv Romania:Bucharest Bulgaria:Sofia Croatia:Zagreb
Serbia:Belgrade Slovenia:Ljubljana Slovakia:Bratislava Estonia:Tallinn Latvia:Riga Lithuania:Vilnius Japan:Tokyo
China:Beijing India:New_Delhi South_Korea:Seoul Thailand:Bangkok Vietnam:Hanoi Indonesia:Jakarta
Philippines:Manila Nepal:Kathmandu Pakistan:Islamabad Iran:Tehran Iraq:Baghdad Egypt:Cairo Morocco:Rabat
Kenya:Nairobi Nigeria:Abuja Ghana:Accra Ethiopia:Addis_Ababa Tunisia:Tunis Algeria:Algiers Senegal:Dakar
Canada:Ottawa Mexico:Mexico_City Cuba:Havana Brazil:Brasilia Argentina:Buenos_Aires Chile:Santiago Peru:Lima
Colombia:Bogota Ecuador:Quito Uruguay:Montevideo Australia:Canberra New_Zealand:Wellington Luxembourg:Luxembourg
Czech_Republic:Prague Malta:Valletta Cyprus:Nicosia Singapore:Singapore"""
CAPITAL_ALIASES = {
    "England": ["UK", "United Kingdom", "Great Britain"],
    "United States": ["USA", "US", "United States of America"],
    "Netherlands": ["Holland"],
}

CONTINENTS = {
    "Europe": (
        "France Germany Italy Spain Portugal England Ireland Norway Sweden Denmark Finland Iceland "
        "Belgium Austria Poland Hungary Greece"
    ),
    "Asia": "Japan China India Thailand Vietnam Indonesia Nepal Pakistan Iran Iraq",
    "Africa": "Egypt Morocco Kenya Nigeria Ghana Ethiopia Tunisia Algeria Senegal",
    "North America": "Canada Mexico Cuba",
    "South America": "Brazil Argentina Chile Peru Colombia Ecuador Uruguay",
}
LANGUAGES = """France:French Germany:German Italy:Italian Spain:Spanish Portugal:Portuguese England:English
Norway:Norwegian Sweden:Swedish Denmark:Danish Poland:Polish Hungary:Hungarian Greece:Greek
Turkey:Turkish Russia:Russian Japan:Japanese China:Chinese Egypt:Arabic Brazil:Portuguese Mexico:Spanish
Argentina:Spanish Austria:German Finland:Finnish"""

OPPOSITES = """hot:cold big:small tall:short long:short up:down left:right day:night light:dark black:white good:bad
happy:sad fast:slow old:new young:old rich:poor hard:soft wet:dry full:empty open:closed early:late
high:low in:out on:off near:far loud:quiet strong:weak thick:thin wide:narrow clean:dirty easy:difficult
safe:dangerous true:false yes:no start:stop win:lose love:hate buy:sell give:take push:pull
summer:winter north:south east:west heavy:light hello:goodbye always:never first:last front:back
inside:outside above:below before:after cheap:expensive brave:afraid sweet:sour deep:shallow sharp:blunt
alive:dead awake:asleep noisy:quiet top:bottom laugh:cry friend:enemy"""
COLOR_OF = """sky:blue grass:green snow:white banana:yellow sun:yellow blood:red coal:black tomato:red lemon:yellow
orange:orange carrot:orange milk:white leaf:green leaves:green chocolate:brown strawberry:red frog:green
polar_bear:white night:black sea:blue ocean:blue rose:red fire_truck:red flamingo:pink elephant:grey
pumpkin:orange cherry:red crow:black broccoli:green cloud:white gold:yellow"""
SOUNDS = """dog:woof cat:meow cow:moo sheep:baa pig:oink duck:quack horse:neigh lion:roar hen:cluck owl:hoot bee:buzz
snake:hiss frog:croak mouse:squeak wolf:howl donkey:hee-haw rooster:cock-a-doodle-doo bird:tweet"""
BABIES = """dog:puppy cat:kitten cow:calf sheep:lamb pig:piglet duck:duckling horse:foal hen:chick lion:cub bear:cub
frog:tadpole goat:kid kangaroo:joey swan:cygnet deer:fawn goose:gosling"""
LEGS = (
    "spider:8 ant:6 bee:6 dog:4 cat:4 horse:4 cow:4 bird:2 duck:2 human:2 snake:0 fish:0 crab:10 "
    "table:4 chicken:2 octopus:8_arms"
)
PLURALS = """mouse:mice foot:feet tooth:teeth child:children man:men woman:women goose:geese person:people sheep:sheep
fish:fish leaf:leaves knife:knives wolf:wolves life:lives baby:babies city:cities box:boxes bus:buses
tomato:tomatoes potato:potatoes cherry:cherries lady:ladies dish:dishes fox:foxes ox:oxen deer:deer
story:stories key:keys"""
TRANSLATIONS = """hello:bonjour:hola:hallo:ciao goodbye:au_revoir:adiós:auf_Wiedersehen:arrivederci
thank_you:merci:gracias:danke:grazie yes:oui:sí:ja:sì no:non:no:nein:no
please:s'il_vous_plaît:por_favor:bitte:per_favore cat:chat:gato:Katze:gatto dog:chien:perro:Hund:cane
house:maison:casa:Haus:casa water:eau:agua:Wasser:acqua bread:pain:pan:Brot:pane milk:lait:leche:Milch:latte
book:livre:libro:Buch:libro sun:soleil:sol:Sonne:sole moon:lune:luna:Mond:luna friend:ami:amigo:Freund:amico
love:amour:amor:Liebe:amore red:rouge:rojo:rot:rosso blue:bleu:azul:blau:blu green:vert:verde:grün:verde
one:un:uno:eins:uno two:deux:dos:zwei:due three:trois:tres:drei:tre tree:arbre:árbol:Baum:albero
apple:pomme:manzana:Apfel:mela good_morning:bonjour:buenos_días:guten_Morgen:buongiorno
night:nuit:noche:Nacht:notte day:jour:día:Tag:giorno car:voiture:coche:Auto:macchina
school:école:escuela:Schule:scuola fish:poisson:pez:Fisch:pesce bird:oiseau:pájaro:Vogel:uccello
king:roi:rey:König:re white:blanc:blanco:weiß:bianco black:noir:negro:schwarz:nero"""
LISTS = rows(
    """fruits:apple,banana,orange,pear,cherry,grape,plum,lemon,peach,mango
vegetables:carrot,potato,onion,tomato,pea,bean,cabbage,spinach,pepper,leek
colors:red,blue,green,yellow,orange,purple,black,white,brown,pink
animals:dog,cat,horse,cow,lion,bear,fox,rabbit,mouse,elephant
birds:eagle,owl,swan,duck,robin,parrot,penguin,crow,hawk,dove
countries:France,Italy,Spain,Germany,Japan,Brazil,Canada,India,Egypt,Kenya
cities:Paris,London,Rome,Berlin,Tokyo,Madrid,Lisbon,Oslo,Cairo,Lima
sports:football,tennis,swimming,running,cycling,hockey,golf,rowing,skiing,boxing
planets:Mercury,Venus,Earth,Mars,Jupiter,Saturn,Uranus,Neptune
continents:Africa,Antarctica,Asia,Europe,North America,South America,Australia
oceans:Pacific,Atlantic,Indian,Arctic,Southern
programming languages:Python,Java,C,Rust,Go,JavaScript,Ruby,Swift,Kotlin,Haskell
metals:iron,gold,silver,copper,tin,lead,zinc,nickel
musical instruments:piano,guitar,violin,drum,flute,trumpet,harp,cello
drinks:water,tea,coffee,milk,juice,lemonade,cocoa,cider
flowers:rose,tulip,daisy,lily,violet,poppy,orchid,iris
trees:oak,pine,birch,maple,willow,beech,elm,cedar
jobs:teacher,doctor,baker,farmer,nurse,pilot,cook,painter
shapes:circle,square,triangle,rectangle,oval,star,cube,sphere
tools:hammer,saw,drill,screwdriver,wrench,pliers,knife,ladder
clothes:shirt,coat,hat,scarf,shoe,sock,dress,glove
seasons:spring,summer,autumn,winter
insects:ant,bee,fly,beetle,butterfly,moth,wasp,cricket
languages:English,French,Spanish,German,Italian,Chinese,Japanese,Arabic"""
)
DAYS = words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = words("January February March April May June July August September October November December")
MONTH_DAYS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
NUMBER_WORDS = words(
    """
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
    eighteen nineteen twenty
    """
)

TRIVIA = rows(
    """How many days are [there |]in a week|There are 7 days in a week.|7
How many months are [there |]in a year|There are 12 months in a year.|12
How many hours are [there |]in a day|There are 24 hours in a day.|24
How many minutes are [there |]in an hour|There are 60 minutes in an hour.|60
How many seconds are [there |]in a minute|There are 60 seconds in a minute.|60
How many days are [there |]in a year|There are 365 days in a year, and 366 in a leap year.|365
How many continents are there|There are 7 continents.|7
How many planets are [there|in the solar system|there in the solar system]|
    There are 8 planets in the solar system.|8
How many letters are [there |]in the alphabet|There are 26 letters in the English alphabet.|26
How many colors are [there |]in a rainbow|A rainbow has 7 colors.|7
How many sides does a triangle have|A triangle has 3 sides.|3
How many sides does a square have|A square has 4 sides.|4
How many sides does a hexagon have|A hexagon has 6 sides.|6
How many wheels does a [car|car usually] have|A car has 4 wheels.|4
How many bits are [there |]in a byte|There are 8 bits in a byte.|8
How many fingers [does a hand have|are on a hand]|A hand has 5 fingers.|5
[What|Which] is the [largest|biggest] planet|Jupiter is the largest planet in the solar system.|Jupiter
[What|Which] is the smallest planet|Mercury is the smallest planet in the solar system.|Mercury
[What|Which] planet is [closest|nearest] to the sun|Mercury is the planet closest to the Sun.|Mercury
[What|Which] planet is [called |known as |]the red planet|Mars is called the red planet.|Mars
[What|Which] planet do we live on|We live on Earth.|Earth
[What|Which] planet has [big |]rings|Saturn is famous for its rings.|Saturn
[What|Which] is the [largest|biggest] ocean|The Pacific is the largest ocean.|Pacific
[What|Which] is the [highest|tallest] mountain [in the world|on Earth|]|
    Mount Everest is the highest mountain on Earth.|Everest
[What|Which] is the longest river [in the world|]|The Nile is often called the longest river in the world.|Nile
[What|Which] is the [largest|biggest] animal [in the world|on Earth|]|The blue whale is the largest animal.|Whale
[What|Which] is the fastest [land animal|animal on land|animal]|The cheetah is the fastest land animal.|Cheetah
[What|Which] is the tallest animal|The giraffe is the tallest animal.|Giraffe
[What|Which] is the [largest|biggest] country [in the world|]|Russia is the largest country by area.|Russia
[What|Which] is the smallest country [in the world|]|Vatican City is the smallest country.|Vatican
[What|Which] is the largest continent|Asia is the largest continent.|Asia
[What|Which] is the king of [the |]animals|The lion is called the king of the animals.|Lion
[What|Which] is the first month [of the year|]|January is the first month of the year.|January
[What|Which] is the last month [of the year|]|December is the last month of the year.|December
[What|Which] is the shortest month|February is the shortest month.|February
[What|Which] is the coldest season|Winter is the coldest season.|Winter
[What|Which] is the hottest season|Summer is the hottest season.|Summer
[What|Which] is the first day of the week|Monday is the first day of the week in many countries.|Monday
[What|Which] is the first letter of the alphabet|The first letter of the alphabet is A.|A
[What|Which] is the last letter of the alphabet|The last letter of the alphabet is Z.|Z
Who wrote [Hamlet|Romeo and Juliet|Macbeth]|William Shakespeare wrote it.|Shakespeare
Who painted the Mona Lisa|Leonardo da Vinci painted the Mona Lisa.|Leonardo
Who was the first [man|person|human] on the moon|Neil Armstrong was the first person on the Moon.|Armstrong
Who [discovered|found] gravity|Isaac Newton described gravity.|Newton
Who [created|made|invented|wrote] Python|Guido van Rossum created Python.|Guido
Who [created|made|invented|wrote|started] Linux|Linus Torvalds started Linux.|Linus
Who invented the [world wide |]web|Tim Berners-Lee invented the World Wide Web.|Berners-Lee
Who invented the telephone|Alexander Graham Bell is known for the telephone.|Bell
Who developed [the theory of |]relativity|Albert Einstein developed the theory of relativity.|Einstein
Who wrote Don Quixote|Miguel de Cervantes wrote Don Quixote.|Cervantes
[At what temperature does water boil|What is the boiling point of water|When does water boil]|
    Water boils at 100 degrees Celsius at sea level.|100
[At what temperature does water freeze|What is the freezing point of water|When does water freeze]|
    Water freezes at 0 degrees Celsius.|0
[What is the speed of light|How fast is light]|The speed of light is about 300,000 kilometers per second.|300000
What is the value of pi|Pi is about 3.14159.|3.14159
What is the square root of 4|The square root of 4 is 2.|2
What is the square root of 9|The square root of 9 is 3.|3
What is the square root of 16|The square root of 16 is 4.|4
What is the square root of 25|The square root of 25 is 5.|5
What is the square root of 100|The square root of 100 is 10.|10
[What is the chemical formula of water|What is the formula for water]|The chemical formula of water is H2O.|H2O
What do bees make|Bees make honey.|Honey
What do cows [drink|eat]|Cows eat grass and drink water.|Grass
What do plants need [to grow|]|Plants need light, water and air.|Light
Why is the sky blue|The sky is blue because air scatters blue light more than red light.|Scattering
Why do leaves fall|Many trees drop their leaves in autumn to save water in winter.|Autumn
Where does the sun rise|The Sun rises in the east.|East
Where does the sun set|The Sun sets in the west.|West
Where do penguins live|Most penguins live in the southern half of the world, many in Antarctica.|Antarctica
Where is the Eiffel Tower|The Eiffel Tower is in Paris.|Paris
Where is the Colosseum|The Colosseum is in Rome.|Rome
Where are the pyramids|The most famous pyramids are in Egypt.|Egypt
Where is Big Ben|Big Ben is in London.|London
Where is the Statue of Liberty|The Statue of Liberty is in New York.|New York
When was [World War II|World War 2|the second world war]|The Second World War lasted from 1939 to 1945.|1939
When was the moon landing|The first people landed on the Moon in 1969.|1969
Is the earth [round|flat]|The Earth is round, like a ball.|Round
Is fire hot|Yes, fire is hot.|Yes
Is ice cold|Yes, ice is cold.|Yes
Is the sun a star|Yes, the Sun is a star.|Yes
Is the moon a planet|No, the Moon is a moon, not a planet.|No
Can birds fly|Yes, most birds can fly.|Yes
Can fish swim|Yes, fish can swim.|Yes
Can penguins fly|No, penguins cannot fly, but they swim well.|No
Can dogs talk|No, dogs cannot talk, but they bark.|No
What is the meaning of life|Some people say the answer is 42.|42
[What is the name of our galaxy|What galaxy do we live in]|Our galaxy is the Milky Way.|Milky Way
What are the primary colors|The primary colors are red, yellow and blue.|Red
What are the four seasons|The four seasons are spring, summer, autumn and winter.|Spring
What gas do we breathe|We breathe air and need the oxygen in it.|Oxygen
What is the currency of Japan|The currency of Japan is the yen.|Yen
What is the currency of [the United States|the USA|America]|The currency of the United States is the dollar.|
    Dollar
What is the currency of [Germany|France|Italy|Spain]|The currency there is the euro.|Euro
What is the currency of [England|the UK]|The currency there is the pound.|Pound
Who was the first president of [the USA|the United States|America]|
    George Washington was the first president of the United States.|Washington
[Say|Write|Tell me|What is|Recite] the alphabet|
    A, B, C, D, E, F, G, H, I, J, K, L, M, N, O, P, Q, R, S, T, U, V, W, X, Y, Z.|
[What are|List|Tell me|Give me] the first [ten|10] prime numbers|2, 3, 5, 7, 11, 13, 17, 19, 23, 29.|
[What are|List|Tell me|Give me] the first [ten|10] fibonacci numbers|1, 1, 2, 3, 5, 8, 13, 21, 34, 55.|
[What are|List|Tell me|Name|Give me] the planets[ of the solar system|]|
    Mercury, Venus, Earth, Mars, Jupiter, Saturn, Uranus and Neptune.|
[What are|List|Name] the colors of the rainbow|Red, orange, yellow, green, blue, indigo and violet.|
[What are|List|Name] the continents|Africa, Antarctica, Asia, Australia, Europe, North America and South America.|
[Give me|Write|Show me|I need|Create] [some JSON|a JSON object|an example of JSON|a JSON example|
    a random JSON object|a small JSON object]|{"name": "Ann", "age": 30, "city": "Rome"}|"""
)

FUN_FACTS = rows(
    """Honey can stay good for a very long time.
An octopus has three hearts.
A day on Venus is longer than a year on Venus.
Bananas are berries, but strawberries are not.
A group of crows is called a murder.
Butterflies taste with their feet.
Light from the Sun takes about eight minutes to reach the Earth.
Sharks are older than trees."""
)
