"""Plots about courage and patience: learning a skill, the dark, a storm, a race, a rescue.

`grammar` says how a plot's text is read.
"""

LEARNING = """
* {He} had one big wish. {He} wanted to {thing}.
/ More than anything, {he} wanted to learn how to {thing}.
/ All {his} friends could {thing}, but {name} could not.

* <one_day>, {he} saw {his} friend {friend} {doing} {at_place}.
/ <one_day>, {name} went to the {place} and saw that {his} friend {friend} was {doing}.
* "[I want to do that too|I wish I could do that]!" said {name}.
/ "That looks like [fun|so much fun]!" said {name}. "How do you do it?"
* {name} tried to {thing} right away, but {he} {mishap}.
/ {He} tried it at once. But {he} {mishap}.
? Some birds in the tree [laughed|giggled]. {name} [turned red|wanted to cry].
/ "I will never learn it," {he} said and felt <sad>.
/ {He} stamped {his} foot. "It is too hard!" {he} said.

* <just_then>, {a_helper} <came_by>. "I saw you try," said the {helper}. "That was a good start."
/ {A_helper} had been watching. "Do you want to learn how to {thing}?" asked the {helper}.
* "But I [cannot do it|always do it wrong]," said {name}.
/ "I am just not good at it," said {name} <softly>.
* "[Nobody can do it|No one is good at it] on the first day," said the {helper}. "{tip}. Then try again."
/ The {helper} said <kindly>, "I will tell you a secret. {tip}."
? {name} listened [well|with care] and tried once more. It was [a little better|not so bad] this time.
/ So {name} tried again. {He} {mishap} again, but {he} only laughed and got up.

? Every day, {name} went back to the {place} to practice. {friend} [came along|helped {him}] too.
/ {name} practiced [on Monday, on Tuesday, and on Wednesday|every morning and every evening].
* And <in_the_end_low>, [one day|one morning], {he} could {thing} all by {himself}!
/ After [a week|many days], {name} did it. {He} could {thing}!
* "Look at me! Look at me!" {he} shouted <joyfully>.
/ "I did it!" {he} shouted, and {friend} clapped.
? The {helper} <smiled>. "I knew you could do it," said the {helper}.
/ {His} {elder} came to see it too and was <proud>.
* {name} <learned> you get better if you try again and again.
/ <from_then_on>, when something was hard, {name} said, "I cannot do it yet, but I will try."
/ {name} <never_forgot> every new thing is hard at first.
? That evening, {he} taught {his} {elder} how to {thing}, and they both laughed.
/ That night, {he} dreamed of {doing}.
"""

THE_DARK = """
* There was only one thing {he} did not like. It was the dark.
/ But when the sun went down, {he} was afraid of the dark.
/ Every night, {he} asked {his} {elder} to stay because {he} was afraid of the dark.

* One night, {name} lay in bed [and could not sleep|and looked around]. The room was [dark|very dark].
/ One [windy|quiet|cold] night, the moon hid behind a cloud, and {his} room was [black|very dark].
* Then {he} saw something [big|tall] and black on the wall. "[A monster|A ghost]!" cried {name}.
/ There was [a shape|a shadow] on the wall that looked like a monster. {name} was <afraid>.
? {He} hid under the sheet and shook.
/ {He} pulled the sheet over {his} head and did not move.
? First, {he} tried to count to ten, but {he} was still afraid.
/ First, {he} tried to sing a little song, but {his} voice [shook|was too small].

* {His} {elder} heard {him} and came in. "What is the matter, {name}?"
/ "{Elder}! Please come!" {he} called. {His} {elder} came <fast>.
? "There is a monster on the wall," said {name} <softly>.
/ "Something is in my room," said {name}. "It is [big|tall] and black."
* {His} {elder} did not laugh. {e_He} brought {a_thing}. "I had this {thing} when I was small," {e_he} said.
/ {His} {elder} gave {him} {a_thing}. "This {thing} will help you to be brave," {e_he} said.
? "[Hold it|Keep it close], and let us look at the monster together."
/ "Now let us go and see what the monster is. I am with you."
* {name} took the {thing} and walked to the wall, one small step at a time.
/ {name} held the {adj_thing} and went closer. {His} legs shook, but {he} did not stop.
* It was not a monster at all. It was only {shadow}!
/ And what was it? It was just {shadow}!
? {name} began to laugh. "[You silly thing|What a silly monster]!" {he} said.
/ "That is all?" said {name}, and they both laughed.

? They opened the window and looked out at the {place}. [An owl called|The stars came out|The moon was back].
/ "Look," said {his} {elder}. "Even the {place} is sleeping now, and it is not afraid."
? "The night is like a blanket for the world," {his} {elder} said. "It is soft and quiet."
/ "The dark only hides the things that you know," {his} {elder} said.
* {name} put the {thing} next to the bed and [closed {his} eyes|yawned]. Soon {he} was asleep.
/ {name} got back into bed with the {thing} by {his} side and slept until morning.
* <from_then_on>, {name} was not afraid of the dark anymore.
/ <from_then_on>, when {he} saw a shadow, {he} took the {thing} and went to look.
? {name} <never_forgot> most monsters are small when you look at them.
/ The next day, {he} told {his} friend {friend} all about it. "I was brave," {he} said <joyfully>.
/ In the morning, {name} showed the {thing} to {his} friend {friend} and said, "It made me brave."
"""

STORM = """
* {He} liked sunny days, but {he} did not like [thunder|storms] at all.
/ {He} liked to play outside, and {he} never looked at the sky.
/ {He} loved the sun, the grass, and the blue sky.

* <one_day>, {name} and {his} friend {friend} were playing {at_place}.
/ <one_day>, {name} went to the {place} with {his} friend {friend} to play.
* [Suddenly|All at once], the sky turned dark, and the wind began to blow.
/ Then [big black|dark gray] clouds came, and the first drops fell.
* Boom! The thunder was very loud. "I am scared!" said {name}.
/ There was a flash and a loud boom. {name} [jumped|held on to {friend}]. "I want to go home!" {he} cried.
? First, they ran under a [bush|small tree], but the rain came through the leaves.
/ They tried to run home, but the path was [full of mud|too wet].

* <just_then>, they heard a voice. It was {a_helper}. "Come in, come in!" called the {helper}.
/ {A_helper} saw them from a little [house|hut] nearby. "Come to me! It is dry here," said the {helper}.
* They ran inside <fast_they>. They were wet and [cold|very cold], but they were safe.
/ {name} and {friend} hurried in. The {helper} gave them [a warm blanket|hot cocoa|warm milk and a towel].
? But the thunder went on, and {name} [shook|was still afraid].
/ Boom! It thundered again, and {name} put both hands over {his} ears.
* "I know what helps," said the {helper} and brought {a_thing}.
/ The {helper} went to a big chest and took out {a_thing}. "This is my storm {thing}," said the {helper}.
? "When it thunders, we {use} the {thing}," said the {helper}. "Then the storm is not so loud."
/ "Do you want to {use} the {thing} with me?" asked the {helper}. {name} nodded.

* So they {used} the {thing} together. With each boom, they [laughed|smiled] a little more.
/ They {used} the {thing} for a long time, and {name} [forgot|did not hear] the thunder.
* <in_the_end>, the rain stopped. There was a [big|bright] rainbow over the {place}!
/ When they looked up again, the storm was over, and the sun was [shining|back].
? "The storm is gone!" said {friend}. "And I was [brave|not so afraid]," said {name} <joyfully>.
/ "Look, everything is shiny and clean!" said {name} <joyfully>.
? "<thanks> for letting us in," said {name}. "[Come again|Come back] soon," said the {helper}.
/ They thanked the {helper} and jumped through all the puddles on the way home.
* {name} <learned> a storm always ends, and that it is less scary with friends.
/ <from_then_on>, {name} was not so afraid of storms anymore.
/ At home, {he} told {his} {elder} all about the {adj_thing} and the kind {helper}.
"""

RACE = """
* {He} could run very fast, and {he} loved to win.
/ Every day, {he} ran up and down the path because {he} wanted to be the fastest.
/ {He} liked games, and most of all {he} liked to run.

* <one_day>, there was a big race {at_place}. The prize was {a_thing}.
/ <one_day>, {name} heard the news. "There is a race {at_place}! The winner gets {a_thing}!"
? "I want to win that {thing}!" said {name}.
/ {name} looked at the {adj_thing} and {his} eyes grew big. "It will be mine," {he} said.
* {His} friend {friend} wanted to run too. "May the best one win," said {friend}.
/ {His} friend {friend} stood next to {him}. "Good luck, {name}," said {friend}.

* {A_helper} [waved a flag|blew a whistle]. "Ready, set, go!" called the {helper}, and they all ran.
/ "One, two, three, go!" shouted {a_helper}, and the race began.
* {name} was [fast|quick as the wind]. Soon {he} was in front, and only {friend} was [close|near].
/ At first {name} was last, but {he} ran faster and faster until only {friend} was next to {him}.
* Then {name} heard a cry. {friend} had [tripped over a root|slipped in the mud] and fallen down.
/ Suddenly there was a thump. {friend} had [stepped into a hole|tripped over a stone] and lay on the ground.
? "[Ouch, my foot|Oh, my knee]!" cried {friend}.
/ "I cannot get up," said {friend} and began to cry.
? {name} looked at the {thing}. It was so close! But then {he} looked at {friend}.
/ {name} could see the end of the path and the shiny prize. What should {he} do?

* {name} turned around and ran back. "[Hold on to me|Take my arm]," {he} said. "We will go together."
/ "A friend is more important than {a_plain_thing}," {name} thought, and {he} went back to help.
? {friend} tried to walk, but it hurt. So {name} [let {f_him} lean on {him}|put one arm around {f_him}].
/ First {friend} could not stand. Then {name} helped {f_him}, and they walked slowly, step by step.
* They came in last of all. But everyone [clapped and cheered|stood up and clapped] for them!
/ When they reached the end, the race was over. Still, all the people [cheered|clapped] <loudly>.
* "You did not win the race," said the {helper}, "but you have the biggest heart. This {thing} is for you."
/ The {helper} came and said <kindly>, "The fastest one wants you to have the {thing}, and so do I."
* "Then it is for both of us," said {name}, and {he} shared the {adj_thing} with {friend}.
/ {name} was <glad>. "[Let us share it|We will both have it]," {he} said to {friend}, and {friend} smiled.
* {name} <learned> being kind is better than being first.
/ <from_then_on>, {name} and {friend} always ran side by side.
/ {name} never won a nicer prize than that.
"""

RESCUE = """
* {He} liked to go on long walks and look for [snails|pretty stones|new paths].
/ {He} loved all animals, big and small.
/ {He} often walked around with open eyes and open ears.

* <one_day>, {name} was walking {at_place} when {he} heard a small voice.
/ <one_day>, {name} went to the {place}. Suddenly {he} heard someone cry.
* "Help! Please help me!" called the voice. It was a little {creature} in a deep hole.
/ In a deep hole sat a little {creature}. "Help! I [fell in|cannot get out]!" it cried.
? "Do not be afraid," said {name}. "I will [help you|get you out]."
/ "Poor little {creature}!" said {name}. "Wait, I will help you."
* {He} lay down and reached into the hole, but {his} arm was too short.
/ First, {he} tried to reach the {creature}, but the hole was much too deep.
? {He} wanted to jump in, but that was not a good idea.
/ Then {he} called for {his} {elder}, but no one [heard {him}|came]. {name} felt <sad>.

* <just_then>, {a_helper} <came_by>. "Do not go in, or you will be stuck too," said the {helper}.
/ {A_helper} came to see what was wrong. "You need something long and strong," said the {helper}.
* "I have {a_thing} at home," said {name}. "[Could that help|Can we use that]?"
/ {name} thought hard. "I know!" {he} said. "We have {a_thing} at home!"
? "What a good idea!" said the {helper}. "Run and get it, and I will stay here."
/ "Yes, the {thing} is just right," said the {helper}. "Be quick!"
* {name} ran home <fast> and came back with the {adj_thing}.
/ {name} ran all the way home and got the {thing}.

* Then {he} {how}. "Hold on tight!" {he} said.
/ With the help of the {helper}, {he} {how}.
* The {creature} slipped [once|two times], but then it [came up|got out], slowly, slowly.
/ The first time, it did not work. The second time, the {creature} came out, little by little.
* "<thanks>! You saved me!" said the {creature}.
/ The {creature} [hopped up and down|danced] with joy. "You are my hero!" it said.
? "The {thing} did it," said {name} and laughed. "And your good idea," said the {helper}.
/ The {helper} <smiled>. "You were brave and clever, {name}," said the {helper}.
* <from_then_on>, the {creature} came to visit {name} every day.
/ {name} <learned> a good idea is as strong as a big arm.
/ That night, {name} told {his} {elder} how the {adj_thing} had saved the {creature}.
"""
