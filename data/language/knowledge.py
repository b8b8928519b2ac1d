"""Small facts about everyday things, for yes/no questions and explanations."""

from .grammar import lines

# name | what it is | what it is for or what it does | where it is found
FACTS_BLOCK = """
otter|an animal|swims in rivers and eats fish|near rivers
owl|a bird|hunts mice at night|in old barns and forests
bee|an insect|makes honey from flowers|in a hive
penguin|a bird|swims well but cannot fly|on cold coasts
camel|an animal|can live for days without water|in the desert
spider|a small creature with eight legs|spins a web to catch flies|in dusty corners
whale|a very large animal|sings under water|in the ocean
frog|an animal|jumps and croaks|near ponds
hedgehog|an animal|rolls into a ball when it is afraid|under hedges
squirrel|an animal|hides nuts for the winter|in trees
beaver|an animal|builds dams out of branches|in streams
parrot|a bird|can copy the human voice|in warm forests
snail|an animal|carries its house on its back|in damp gardens
bat|an animal|sleeps upside down during the day|in caves
horse|an animal|pulls carts and carries riders|on farms
hen|a bird|lays eggs|on farms
goat|an animal|eats almost anything and gives milk|on rocky hills
salmon|a fish|swims up rivers to lay its eggs|in rivers and the sea
butterfly|an insect|drinks nectar from flowers|in meadows
elephant|a very large animal|drinks through its trunk|in warm countries
hammer|a tool|drives nails into wood|in a toolbox
saw|a tool|cuts wood|in a workshop
spade|a tool|digs holes in the ground|in a garden shed
needle|a thin piece of steel|sews cloth together|in a sewing box
kettle|a kitchen tool|boils water for tea|in the kitchen
oven|a kitchen machine|bakes bread and cakes|in the kitchen
fridge|a kitchen machine|keeps food cold|in the kitchen
sieve|a kitchen tool|separates lumps from flour|in the kitchen
corkscrew|a small tool|opens bottles|in a kitchen drawer
umbrella|a folding roof|keeps the rain off your head|in the hallway
lantern|a kind of lamp|gives light in the dark|on boats and in tents
compass|a small instrument|points to the north|in a sailor's pocket
telescope|an instrument|makes distant stars look near|in an observatory
microscope|an instrument|makes tiny things look large|in a laboratory
thermometer|an instrument|measures how warm it is|on a wall
clock|a machine|tells the time|on towers and walls
mirror|a piece of glass|shows your own face|in bathrooms
candle|a stick of wax|burns slowly and gives light|on tables
blanket|a large piece of cloth|keeps you warm at night|on a bed
pillow|a soft bag|supports your head while you sleep|on a bed
ladder|a simple tool|helps you reach high places|in a garage
bicycle|a vehicle with two wheels|moves when you push the pedals|on roads
ferry|a boat|carries people and cars across the water|in harbours
tractor|a heavy vehicle|pulls machines across the field|on farms
tram|a vehicle|runs on rails through the town|in cities
lighthouse|a tower with a strong light|warns ships of rocks|on the coast
library|a building full of books|lends books to everyone|in most towns
bakery|a shop|sells fresh bread and cakes|in most streets
museum|a building|shows old and precious things|in cities
bridge|a strong structure|carries the road over a river|over rivers
windmill|a tall building with sails|grinds grain into flour|on windy hills
greenhouse|a house of glass|keeps plants warm|in gardens
orchard|a field of fruit trees|gives apples and pears in autumn|in the country
volcano|a mountain|throws out hot rock and ash|in many parts of the world
desert|a dry place|gets almost no rain|in hot countries
island|a piece of land|has water on every side|in seas and lakes
glacier|a river of ice|moves very slowly down a valley|in high mountains
rainbow|an arch of colours|appears when the sun shines through rain|in the sky
moon|a round body of rock|goes around the earth once a month|in the sky
sun|a star|gives us light and warmth|in the sky
cloud|a mass of tiny drops|brings rain and shade|in the sky
violin|an instrument with four strings|is played with a bow|in an orchestra
trumpet|a brass instrument|makes a bright, loud sound|in a band
drum|a round instrument|is played with sticks or hands|in a band
piano|a large instrument with keys|has black keys and white keys|in concert halls
flute|a wind instrument|is played by blowing across a hole|in an orchestra
oak|a large tree|drops acorns in autumn|in forests and parks
willow|a tree|bends its branches over the water|near rivers
tulip|a flower|grows from a bulb in spring|in gardens
sunflower|a tall flower|turns its head to the sun|in fields
lavender|a purple plant|smells sweet and calms people|in dry, sunny places
cactus|a plant with thorns|stores water in its stem|in the desert
mushroom|a fungus|grows overnight in wet weather|in forests
carrot|a vegetable|grows under the ground|in fields
potato|a vegetable|can be boiled, baked or fried|in fields
lemon|a fruit|tastes very sour|on small trees
apple|a fruit|can be eaten raw or baked in a pie|on trees
honey|a sweet food|is made by bees|in jars
cheese|a food|is made from milk|in dairies
bread|a food|is made from flour, water, salt and yeast|in bakeries
salt|a white mineral|makes food taste stronger|in the sea
butter|a food|is made from cream|in the fridge
wool|a soft material|comes from sheep|in jumpers and blankets
silk|a fine material|is made by a small worm|in dresses
leather|a strong material|is made from animal skin|in shoes and belts
glass|a hard, clear material|is made from sand|in windows
paper|a thin material|is made from wood|in books
iron|a strong metal|rusts when it gets wet|in gates and tools
copper|a reddish metal|carries electricity well|in wires
gold|a soft yellow metal|never rusts|in rings and coins
baker|a person|makes bread early in the morning|in a bakery
plumber|a person|repairs pipes and taps|in many houses
librarian|a person|helps you find a book|in a library
shepherd|a person|looks after sheep|on the hills
dentist|a doctor|looks after your teeth|in a clinic
pilot|a person|flies aeroplanes|in the cockpit
tailor|a person|makes and mends clothes|in a small shop
florist|a person|sells flowers|in a flower shop
astronomer|a scientist|studies the stars|in an observatory
botanist|a scientist|studies plants|in gardens and forests
beekeeper|a person|looks after bees and sells honey|near flower fields
vet|a doctor|treats sick animals|in a clinic
winter|a season|is cold and has short days|after autumn
summer|a season|is warm and has long days|after spring
"""

FACTS = [tuple(line.split("|")) for line in lines(FACTS_BLOCK)]

SMALL_TO_LARGE = [
    "flea",
    "ant",
    "bee",
    "moth",
    "snail",
    "mouse",
    "frog",
    "robin",
    "rat",
    "squirrel",
    "pigeon",
    "hen",
    "rabbit",
    "cat",
    "fox",
    "badger",
    "goose",
    "dog",
    "sheep",
    "goat",
    "wolf",
    "deer",
    "pony",
    "lion",
    "cow",
    "horse",
    "camel",
    "giraffe",
    "elephant",
    "whale",
]
SLOW_TO_FAST = [
    "snail",
    "tortoise",
    "duck",
    "donkey",
    "rowing boat",
    "bicycle",
    "horse",
    "tram",
    "motorbike",
    "train",
    "helicopter",
    "rocket",
]
LIGHT_TO_HEAVY = [
    "feather",
    "leaf",
    "coin",
    "pencil",
    "apple",
    "book",
    "teapot",
    "brick",
    "chair",
    "bicycle",
    "piano",
    "tractor",
    "ship",
]
WEEK = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
YEAR = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]
