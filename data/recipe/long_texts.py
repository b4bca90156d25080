"""What the long clips of the stored sweeps say, but for their prose: dictation, lists, digits, refrains.

Everything is ours. Dictation is dense in function words, lists say the same short frame again and again, and digits and
refrains rightly repeat. All of it is drawn from a seed, so the same seed gives the same sentences.
"""

from random import Random

# Directions, minutes and letters, as people dictate them: of six words, three or four are "the", "of", "to", "and".
DICTATION = """
The key to the door of the shed is on the nail by the window of the kitchen.
If the door does not open, push it to the left and then to the right.
The box with the tools is at the back, behind the bench and under the shelf.
Take the small saw and the long rope, and leave the rest of it for the others.
When you have put it all back, lock the door and bring the key to me.
Go to the end of the street and turn to the right at the corner by the bank.
Walk past the church and the school, and then go over the bridge to the other side.
The house is the second on the left, between the garden and the wall of the mill.
If you come to the river again, you have gone too far and have to turn back.
Ring the bell at the gate, and one of us will come down to let you in.
Dear sir, thank you for the letter of the third, and for the papers that were with it.
I have read the first part of the report, and I am of the same mind as you.
As to the second part, it is not clear to me what is to be done and by whom.
I would be glad if you could send me the list of the names by the end of the week.
It may be that the work will have to wait until the beginning of the year.
At the start of the meeting the chair asked for the minutes of the last one.
It was agreed that the cost of the roof is to be paid out of the money for the hall.
The question of the road was put off, as one of the members was not in the room.
It was said that the letter to the town had not been answered by the end of the month.
The next meeting is to be on the first Monday of the month, at the same time.
The water is to be changed in the morning and in the evening, and the floor is to be swept.
One of the dogs is old, and it is best for him to be out of the sun in the afternoon.
The food for the birds is in the bag by the door, and there is more of it in the barn.
If it is cold in the night, put the lid on the tank and the cover on the plants.
The man from the farm will come for the eggs, and he will bring the milk with him.
To make the bread, put the flour in the bowl and make a hole in the middle of it.
Warm the milk with a bit of the butter, and put the yeast and the sugar into it.
Let it stand for a quarter of an hour, until there is a foam on the top of it.
Put the one into the other, add the salt, and work it with your hands until it is smooth.
Cover it with a cloth and leave it by the side of the stove for the rest of the hour.
The train from the coast is late, and the one to the north will not wait for it.
The people for the north are asked to go to the front of the train and to the last door.
Those who are to go on to the south will find a bus in front of the station.
The office at the end of the hall is open to all who have to stay for the night.
We are sorry for the delay, and for the cold in the first of the waiting rooms.
By the time that we came to the top of the hill, the sun was at the edge of the sea.
There was a light in one of the windows of the house, and then in the next, and in the next.
It was as if somebody went from room to room with a lamp in his hand to look for us.
All that we could hear was the wind in the grass and the sound of the bell in the bay.
None of us said a word, for it was the last of the days that we had in the place.
The first of the pictures is of the town as it was before the war and the fire.
In the middle of it is the market, and on the right of the market is the old hall.
The second was made from the same place, but in the winter after the end of the war.
Of the hall there is no more than a wall, and of the market there is nothing at all.
The last is of the town as it is now, with the new hall in the place of the old.
The rent for the rooms is due on the first of the month, and it is to be paid at the desk.
The cost of the heat and of the light is not in the rent, but that of the water is.
At the end of the year the owner of the house may raise it by as much as a tenth.
If the tenant is to leave, he has to say so by the third of the month before.
The keys to the rooms and to the cellar are then to be given back to the owner.
In the case of a fire, leave the room at once and close the door on the way out.
Do not go back for the sake of the things that you have left in the room.
The way out is at the end of the hall, to the left of the stairs and of the kitchen.
From there go over the yard to the gate, and wait by the wall until you are counted.
The bell on the roof will tell you when it is safe to go in again.
The boy said to the girl that he had seen the ship on the day that it came to the bay.
She said that it could not have been the same ship, as the one she knew was of the north.
He told her of the flag and of the name on the side of it, and of the men on the deck.
And as he spoke of it, she saw that he had been there, and that it was the truth.
So the two of them went down to the end of the pier to see if it was still to be seen.
""".strip().splitlines()


def _words(text: str) -> list[str]:
    return text.split()


THINGS = _words("""
apples pears plums grapes lemons onions carrots beans peas potatoes bread butter cheese milk honey salt sugar
pepper flour rice tea coffee soap candles matches paper ink thread needles buttons nails rope paint glue string
cloth wool leather silk boots gloves hats coats shirts socks plates cups spoons forks knives bowls baskets""")
MEASURES = ("a bag of", "a box of", "a pound of", "half a pound of", "a jar of", "a basket of", "two boxes of")
PEOPLE = _words("""
Anna Ben Clara David Edward Emily Frank Grace Henry Helen Jane Kate Laura Lucy Mary Martin Nora Oliver
Paul Peter Rachel Robert Rose Sarah Simon Sophie Thomas Walter William""")
ROOMS = _words("""
kitchen cellar attic garden garage hall bedroom bathroom office library stable barn shed chapel tower
workshop nursery pantry laundry school""")
ONES = _words("zero one two three four five six seven eight nine")
LINES = """the river runs down to the sea; the wheels of the train go over the hill; the wind is in the willow tree;
the snow is falling on the town; my love is far across the water; the birds have gone to the south again; the lamps are
lit along the road; the ship is sailing out of the bay; the bells are ringing over the fields; the rain is falling on my
door; the fire is burning low; the moon is over the mill; the children are dancing in the yard; the horses are coming
home; the corn is standing in the field; the night is long and the road is long""".replace("\n", " ").split("; ")
CHORUS = """carry me home, carry me home; round and round and round we go; sing it again, sing it again;
long, long ago, long, long ago; row, row, row to the shore; never, never, never more; oh my love, oh my love;
wait for me, wait for me; day after day, day after day; one more time, one more time""".replace("\n", " ").split("; ")


def lists(rng: Random) -> list[str]:
    """An inventory: what to buy, who sits where, or what is in which room."""
    kind, sentences = rng.randrange(3), []
    things, people, rooms = (rng.sample(names, len(names)) for names in (THINGS, PEOPLE, ROOMS))
    for i in range(10):
        if kind == 0:
            items = [f"{rng.choice(MEASURES)} {things[3 * i + k]}" for k in range(3)]
            sentences.append(f"We need {items[0]}, {items[1]} and {items[2]}.")
        elif kind == 1:
            sentences.append(f"{people[2 * i]} sits next to {people[2 * i + 1]}, at table {ONES[1 + i % 9]}.")
        else:
            count = ONES[rng.randrange(2, 10)]
            sentences.append(
                f"In the {rooms[i]} there are {count} boxes of {things[2 * i]} and a box of {things[-1 - i]}."
            )
    return sentences


def digits(rng: Random) -> list[str]:
    """Numbers as they are read out, with groups that come back."""
    sentences = []
    for _ in range(14):
        group = [rng.choice(ONES) for _ in range(rng.choice((2, 3)))]
        tail = [rng.choice(ONES) for _ in range(rng.choice((2, 3, 4)))]
        parts = rng.choice(([group, group, tail], [group, tail], [tail, group, group], [group, tail, tail]))
        sentences.append(", ".join(" ".join(part) for part in parts).capitalize() + ".")
    return sentences


def refrains(rng: Random) -> list[str]:
    """A song: lines, and a chorus after each; some lines come twice."""
    lines, chorus = rng.sample(LINES, 6), rng.choice(CHORUS)
    sentences = []
    for line in lines:
        sentences += [line] * rng.choice((1, 2)) + [chorus]
    return [s.capitalize() + "." for s in sentences]
