"""Plots about others: a stranger's load, a garden, a surprise, a new friend.

`grammar` says how a plot's text is read.
"""

STRANGER = """
* {He} loved to play, and {he} was always in a hurry.
/ Every day after lunch, {he} ran out to play.

* <one_day>, {name} was on the way to the {place} [to meet|to play with] {his} friend {friend}.
/ <one_day>, {name} ran along the path to the {place}, where {his} friend {friend} was waiting.
* There {he} saw {a_helper} with {a_thing}. The {helper} [stopped to rest|looked very tired].
/ On the path stood {a_helper} who was trying to [lift|carry] {a_thing}.
? "Hello," said the {helper}. "This {thing} is too heavy for me. [Can you help|Would you help] me, please?"
/ "Oh dear," said the {helper}. "How will I ever get this {thing} home?"
? {name} did not know the {helper}, and {he} wanted to play. But {he} could not just walk away.
/ {name} thought about the game. {friend} was waiting. Then {he} looked at the tired {helper}.
* "[Of course|Yes], I will help you," said {name} <kindly>.
/ "I can play later," said {name}. "Let me help you with the {thing}."

? First, {name} tried to lift the {adj_thing}, but it did not move.
/ {name} pulled as hard as {he} could, but the {thing} was too heavy.
* "Let us [try it together|push it together]," said the {helper}. "One, two, three!"
/ Then {name} had an idea. "You take one side, and I take the other side," {he} said.
* Step by step, they [brought|took] the {thing} [up the hill|over the bridge|along the path] to a small house.
/ It worked! They walked slowly with the {thing} and told each other [jokes|stories] all the way.
* "<thanks>!" said the {helper}. "You are a good [friend|child]. What is your name?"
/ "You have a kind heart," said the {helper}. "I will not forget it."
* "My name is {name}," said {name}. "It was [nothing|fun]." Then {he} ran to the {place}.
/ {name} smiled, said goodbye, and ran on to the {place}.

* But on the way home, {he} took the wrong path, and soon {he} was lost.
/ {He} played with {friend} for a long time. When {he} went home, it was [dark|foggy], and {he} got lost.
? "Where am I?" {he} said <softly>. {He} felt <sad>.
/ {He} walked to the left and to the right. "I [do not know this path|cannot find my house]," {he} said.
* Then {he} heard a voice that {he} knew. It was the {helper}! "Come, {name}. I know the way."
/ <just_then>, the {helper} from the morning <came_by>. "You helped me, and now I will help you."
* The {helper} took {him} home, and {his} {elder} <hugged> {him}.
/ Together they found the right path, and soon {name} saw {his} house. {His} {elder} was so glad.
* {name} <learned> when you are kind, kindness comes back to you.
/ <from_then_on>, {name} and the {helper} were friends and carried many things together.
? "Where have you been?" asked {his} {elder}. {name} laughed. "I made a new friend!"
/ "I am proud of you," said {his} {elder}.
"""

GARDEN = """
* {He} loved flowers, bugs, and all things that grow.
/ {He} wished for something that was all {his} own.
/ {He} liked to dig in the dirt more than anything.

* <one_day>, {name} met {a_helper} {at_place}. The {helper} gave {him} a tiny seed.
/ <one_day>, {a_helper} came to the {place} and gave {name} a little brown seed.
* "What is it?" asked {name}. "It is a {thing} seed," said the {helper}. "[Plant it|Take care of it]."
/ "This is a {thing} seed," said the {helper}. "If you are patient, you will have {a_thing}."
* {name} ran home and [dug a small hole|made a hole with {his} finger]. {He} put the seed in and watered it.
/ {name} put the seed into the soft ground behind {his} house and gave it some water.

* The next day, {he} went to look. There was nothing. "Grow, little seed!" {he} said.
/ {He} sat down and waited, but nothing happened. "Why does it not grow?" {he} asked.
? First, {he} gave it [three buckets|lots and lots] of water, but that [only made mud|did not help].
/ First, {he} sang to it, and then {he} shouted at it, but it did not [care|grow].
* Then {he} wanted to dig the seed up again. "I do not want to wait!" {he} said to {his} friend {friend}.
/ "Maybe the seed is [broken|sleeping]," said {his} friend {friend}. {name} felt <sad>.
* {He} went back to the {helper}. "My {thing} does not grow," {he} said <softly>.
/ The {helper} came to see. "My seed does not like me," said {name}.
* "A seed has a lot to do under the ground," said the {helper}. "Give it a little water and a lot of time."
/ The {helper} said <kindly>, "It grows when you do not see it. You must [wait|be patient]."

* So {name} waited. Every morning {he} gave it a little water and said, "Good morning, {thing}!"
/ {name} nodded. {He} watered it a little each day, and {friend} pulled out the weeds.
? It rained, and the sun shone, and then there was a [green leaf|tiny green dot] in the ground!
/ One morning, a small green leaf looked out of the ground. "It is [here|alive]!" {name} shouted.
* It grew and grew, and <in_the_end_low> it was {a_thing}!
/ Week after week it grew, and at the end of summer {name} had {a_thing}.
? "I have never seen such {a_thing}," said {his} {elder}.
/ Everyone came to see the {adj_thing}, and {name} was <proud>.
? {name} took the {helper} by the hand. "Look! We both waited," {he} said <joyfully>.
/ "<thanks> for the seed," {name} told the {helper}, and the {helper} <smiled>.
? {He} kept [one seed|some seeds] from the {thing} for the next spring.
/ {friend} asked for a seed too, and {name} gave {f_him} one.
* {name} <learned> good things need time to grow.
/ <from_then_on>, {name} was [much more|a lot more] patient.
/ And every year after that, there was a {thing} behind the house.
"""

SURPRISE = """
* {He} loved {his} {elder} very much.
/ {He} lived with {his} {elder}, and they were very happy together.

* <one_day>, {name} remembered that tomorrow was the birthday of {his} {elder}.
/ <one_day>, {name} woke up early. "It is the birthday of my {elder} tomorrow!" {he} thought.
* "I want to bake {a_thing} as a surprise," {he} said.
/ "I know what I will do," said {name}. "I will make {a_thing}. It will be a secret!"
* {He} looked in the kitchen, but there was no {needs}.
/ But when {he} opened the cupboard, all the {needs} was gone.
? "Without {needs}, I cannot make the {thing}," {he} said and felt <sad>.
/ "Oh no!" said {name}. "How can I bake now?"

* {He} walked to the {place} to ask for help. There {he} met {a_helper}.
/ So {he} ran to the {place}. <just_then>, {a_helper} <came_by>.
* "Do you have some {needs} for me?" asked {name}. "I want to bake {a_thing} for my {elder}."
/ "Why are you in such a hurry?" asked the {helper}. "I need {needs} for {a_thing}," said {name}.
* "I have some," said the {helper}. "But first, please help me [find my hat|clean my house|carry some wood]."
/ The {helper} nodded. "I will give you some if you help me [sweep the floor|pick some berries]."
* {name} helped <fast>, and then the {helper} gave {him} a big bag of {needs}.
/ So {name} worked hard until it was done. "Here you are," said the {helper} and gave {him} the {needs}.

* At home, {name} mixed and stirred. The first {thing} [burned and turned black|fell on the floor].
/ Back at home, {name} began to bake. But the first {thing} was [as hard as a stone|much too salty].
* {He} [almost cried|sighed]. But then {his} friend {friend} came in. "I will help you," said {friend}.
/ "I cannot do it," {name} told {his} friend {friend}. "Yes, you can," said {friend}. "Let us try again."
* The second {thing} was soft and sweet, and it smelled so good.
/ This time they did it slowly, and the {adj_thing} was [perfect|just right].
* The next morning, {name} carried it to {his} {elder}. "Happy birthday!" {he} shouted <joyfully>.
/ When {his} {elder} woke up, the {thing} stood on the table with a candle on it. "Surprise!" cried {name}.
? "[For me|Did you make this]?" asked {his} {elder}. "It is the best {thing} in the world!"
/ {His} {elder} had tears of joy and <hugged> {him}. "What a <great> {thing}!" {e_he} said.
? They shared it with {friend} and the {helper}, and there was not a crumb left.
/ They all sat down together and ate until they were full.
* {name} <learned> the best gift is one that is made with love.
/ {name} was <glad> because making others happy had made {him} happy too.
/ <from_then_on>, {name} baked a {thing} for every birthday.
"""

NEW_FRIEND = """
* {He} was new there, and {he} did not have a friend yet.
/ {His} family had just moved in, and {he} did not know anyone.
* {He} only had {a_thing} to play with.
/ {His} only friend was {a_thing} that {he} had brought along.

* <one_day>, {name} took the {thing} and went to the {place}. Some children were playing there.
/ <one_day>, {name} saw some children who were playing {at_place}. {He} held {his} {thing} and watched.
? {He} wanted to join them, but {his} feet did not want to move.
/ "I wish I could play with them," {he} thought, but {he} was too shy to ask.
? First, {he} said hello, but {he} said it so softly that nobody heard.
/ First, {he} waved a little, but no one looked at {him}.
* {He} sat down {spot_a} and felt <sad>.
/ So {he} went away and sat {spot_a}, all alone.

* <just_then>, {a_helper} <came_by>. "Why do you sit here by yourself?" asked the {helper}.
/ {A_helper} was sitting there too. "That is a nice {thing}," said the {helper}. "Why do you not play?"
* "Nobody wants to be my friend," said {name} <softly>.
/ "I do not know how to make a friend," said {name}.
* "You have a {thing}," said the {helper}. "Go and ask if someone wants to play with it too."
/ The {helper} said <kindly>, "Show them your {thing}. A friend is only one hello away."
? "What if they say no?" asked {name}. "Then you ask [someone else|again]," said the {helper}.
/ "But I am <afraid_short>," said {name}. "Everyone is, the first time," said the {helper}.

* {name} took a deep breath and walked over. "Hello! I am {name}," {he} said, louder than before.
/ {name} got up, held the {thing} up high, and called, "Hello! Who wants to play with me?"
* A [girl|child] turned around, and then a {f_kid} came running. "I am {friend}! I like your {thing}!"
/ A {f_kid} with a big smile looked up. "Hello! I am {friend}. What a <great> {adj_thing}!"
? "Do you want to try it?" asked {name}. "Yes, please!" said {friend}.
/ "You can play with it," said {name}. "<thanks>!" said {friend}. "You can play our game too!"
* They played with the {thing} and [ran around|laughed a lot] until the sun went down.
/ Soon all the children took turns with the {thing}, and {name} laughed louder than anyone.
? "Will you come back tomorrow?" asked {friend}. "Yes!" said {name} <joyfully>.
/ "See you tomorrow!" said {friend}. {name} was <glad>.
? On the way home, {name} saw the {helper} again. The {helper} <smiled>, and {name} waved.
/ At home, {he} told {his} {elder}, "I have a friend now!"
* {name} <learned> one brave little word can make a friend.
/ <from_then_on>, {name} and {friend} met {at_place} every day.
/ <from_then_on>, when {name} saw a child alone, {he} went there and said hello.
"""
