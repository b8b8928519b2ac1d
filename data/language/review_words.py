"""What can be reviewed, by kind."""

from .grammar import words

NOUNS = {
    "kitchen": words("""kettle, toaster, blender, frying pan, coffee machine, mixer, saucepan,
        rice cooker, teapot, juicer, waffle iron, bread maker, pressure cooker, pepper mill, wok,
        microwave, food processor, grill"""),
    "gadget": words("""phone, tablet, camera, speaker, pair of headphones, keyboard, laptop,
        radio, alarm clock, e-reader, smart watch, vacuum cleaner, hair dryer, razor, torch,
        printer, projector, thermometer, electric toothbrush, drone"""),
    "clothing": words("""jacket, coat, raincoat, jumper, backpack, pair of boots, pair of
        gloves, dress, shirt, scarf, pair of trousers, hat, tent, sleeping bag, handbag, waistcoat,
        pair of trainers, cardigan"""),
    "furniture": words("""chair, desk, sofa, mattress, bookshelf, wardrobe, bench, armchair,
        stool, chest of drawers, coffee table, bed frame, bedside table, garden chair, rocking
        chair, cupboard"""),
    "film": words("""film, movie, comedy, drama, thriller, documentary, western, musical,
        romance, adventure film, horror film, mystery, cartoon, sequel, science fiction film, love
        story, war film, detective film"""),
    "book": words("""novel, book, biography, memoir, story collection, cookbook, travel guide,
        children's book, detective novel, fantasy novel, textbook, poetry collection, diary, comic,
        history book"""),
    "restaurant": words("""restaurant, cafe, bistro, pizzeria, diner, tea room, steak house,
        noodle bar, seafood place, bakery, canteen, pub, ice cream parlour, sandwich shop"""),
    "hotel": words("""hotel, guest house, inn, hostel, cottage, holiday flat, campsite, lodge,
        bed and breakfast, seaside resort, cabin, houseboat"""),
    "course": words("""pottery course, cooking class, piano course, language class, chess
        course, sailing course, drawing class, yoga class, programming course, dance class, first
        aid course, photography workshop, gardening course, writing workshop"""),
    "game": words("""game, puzzle game, racing game, board game, card game, farming game, word
        game, adventure game, quiz app, drawing app, recipe app, weather app, language app, travel
        app"""),
    "show": words("""concert, musical, opera, play, circus show, museum tour, city tour, ballet,
        magic show, puppet show, jazz night, boat tour, castle tour, comedy night"""),
}

# The section of starts.txt that fits each kind.
START_OF = {
    "kitchen": "bought", "gadget": "bought", "clothing": "bought", "furniture": "bought",
    "film": "seen", "show": "seen", "book": "read", "restaurant": "visited", "hotel": "visited",
    "course": "joined", "game": "bought",
}  # fmt: skip
