"""Adjectives, adverbs and feelings, with the polarity that the other files rely on."""

from .grammar import words

QUALITIES = {
    "good": words("""good, great, excellent, wonderful, superb, delightful, brilliant, fantastic,
        marvellous, impressive, splendid, charming, lovely, pleasing, terrific, outstanding,
        remarkable, first-rate, magnificent, satisfying, admirable, enjoyable, exceptional,
        fabulous, flawless, glorious, graceful, memorable, perfect, refreshing, rewarding,
        stunning, thoughtful, top-notch, clever, elegant, polished, sturdy, reliable, beautiful"""),
    "bad": words("""bad, poor, terrible, awful, dreadful, horrible, disappointing, dull, shoddy,
        clumsy, mediocre, tedious, unpleasant, lousy, annoying, frustrating, weak, dismal, boring,
        careless, cheap, confusing, depressing, dreary, faulty, feeble, flimsy, forgettable,
        hopeless, irritating, lazy, lifeless, messy, miserable, pathetic, pointless, ridiculous,
        sloppy, tiresome, useless, worthless, wretched"""),
    "love": words("""loved, adored, enjoyed, admired, appreciated, treasured, was delighted by,
        was impressed by, was charmed by, was thrilled with"""),
    "hate": words("""hated, disliked, regretted, despised, was let down by, was annoyed by, was
        bored by, was disappointed with, was irritated by, could not stand"""),
    "glad": words("""happy, glad, proud, cheerful, delighted, thrilled, relieved, grateful, excited,
        joyful, content, hopeful, overjoyed, pleased, peaceful, amused, calm, confident"""),
    "upset": words("""sad, worried, upset, nervous, lonely, angry, afraid, ashamed, anxious,
        miserable, frightened, jealous, disappointed, embarrassed, tired, gloomy, restless,
        puzzled, heartbroken, discouraged, homesick, guilty, confused"""),
    "kind": words("""kind, patient, gentle, generous, honest, brave, clever, cheerful, wise, loyal,
        curious, friendly, polite, humble, careful, hard-working, thoughtful, quiet, playful,
        sensible, creative, determined, modest, lively, witty, helpful, stubborn but fair"""),
    "unkind": words("""grumpy, selfish, rude, lazy, greedy, impatient, careless, boastful, stubborn,
        bossy, cruel, dishonest, moody, noisy, spiteful, suspicious, vain, mean, thoughtless"""),
    "look": words("""tall, short, thin, round, tiny, huge, old, young, ancient, modern, narrow,
        wide, dusty, shiny, crooked, straight, smooth, rough, heavy, light, soft, hard, wooden,
        broken, spotless, faded, bright, dark, sparkling, plain, striped, spotted, curly, delicate,
        enormous, miniature, hollow, pointed, flat, twisted, muddy, polished, tattered, worn"""),
    "place_look": words("""quiet, busy, crowded, dusty, sunlit, misty, empty, cosy, noisy, peaceful,
        muddy, windy, shady, ruined, cheerful, gloomy, steep, rocky, grassy, flooded, abandoned"""),
    "size": words("small, large, tiny, huge, little, big, enormous, medium-sized"),
    "manner": words("""slowly, quickly, quietly, loudly, carefully, gently, bravely, eagerly,
        happily, sadly, nervously, proudly, politely, patiently, suddenly, silently, calmly,
        cheerfully, clumsily, gracefully, hurriedly, kindly, lazily, neatly, softly, stubbornly,
        swiftly, thoughtfully, warmly, wearily, anxiously, boldly, briskly, cautiously, firmly"""),
    "luckily": words("""luckily, fortunately, thankfully, happily, to everyone's surprise, in the
        end, by good fortune, as luck would have it"""),
    "sadly": words("""sadly, unfortunately, unluckily, to make matters worse, alas, regrettably"""),
    "then": words("""then, after that, next, soon afterwards, a moment later, before long, a little
        later, shortly after, within minutes, at last, eventually, by and by"""),
    "once": words("""one morning, one evening, one day, one afternoon, one night, last week, last
        summer, last winter, some years ago, not long ago, early one morning, late one evening,
        on a quiet afternoon, at the start of the holidays, on the first day of spring"""),
    "very": words("""very, really, quite, truly, rather, extremely, incredibly, surprisingly,
        remarkably, unusually, so, thoroughly"""),
    "smell": words("""fresh bread, cinnamon, wet leaves, woodsmoke, lavender, the sea, old books,
        cut grass, coffee, warm milk, pine needles, soap, roses, damp wool, oranges, paint"""),
    "sound": words("""the ticking of a clock, distant thunder, church bells, barking, soft music,
        laughter, rain on the roof, a creaking door, footsteps, the whistle of a train, birdsong,
        the hum of machines, waves on the shore, a crackling fire, wind in the chimney"""),
    "walk": words("""walk, run, hurry, stroll, march, rush, wander, trudge, stride, dash, creep,
        limp, race, cycle, skip, hike, sneak, jog, stumble, tiptoe, gallop, trot"""),
    "speak": words("""say, whisper, shout, reply, call, mutter, explain, announce, cry, insist,
        suggest, admit, declare, murmur, answer, remark, exclaim, laugh, sigh, warn, promise"""),
    "watch": words("""watch, study, notice, examine, inspect, admire, stare at, glance at, observe,
        gaze at, peer at, search, check"""),
    "chore": words("""wash the dishes, sweep the floor, feed the hens, water the plants, mend the
        fence, chop the wood, polish the windows, fold the laundry, peel the potatoes, tidy the
        cupboard, paint the gate, milk the goat, scrub the steps, dust the shelves, rake the leaves,
        iron the shirts, weed the garden, collect the eggs, empty the bins, stack the chairs,
        brush the horse, carry the firewood, set the table, bake the bread, sort the letters"""),
    "pastime": words("""read a book, play the piano, ride a bicycle, draw a picture, sing a song,
        write a letter, climb a tree, build a sandcastle, fly a kite, bake a cake, knit a scarf,
        catch a fish, tell a story, watch the birds, count the stars, plant a seed, paint a
        landscape, play chess, swim in the lake, skate on the ice, collect shells, listen to the
        radio, visit the museum, walk in the forest, juggle three oranges, whistle a tune"""),
}
