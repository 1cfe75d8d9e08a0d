"""Plots about one thing: lost, shared, broken and mended, broken and confessed, or saved up for.

`grammar` says how a plot's text is read.
"""

LOST = """
* {His} favorite thing of all was {a_thing}.
/ {He} had {a_thing} and took it everywhere.
/ Of all {his} things, {he} loved {his} {adj_thing} the most.
? {His} {elder} had given it to {him} [for {his} birthday|last winter|as a surprise].
/ It was a gift from {his} {elder}, so {he} took [good|great] care of it.

* <one_day>, {name} went to the {place} and took the {thing} along.
/ <one_day>, {name} took the {thing} to the {place}.
* {He} [ran and jumped|hopped and skipped|played and sang] [for a long time|until {he} was tired].
/ It was so nice there that {he} [rolled in the grass|chased a butterfly|danced in a circle] and laughed.
* But when it was time to go home, the {thing} was [gone|missing].
/ Then {he} saw that the {thing} was [gone|not there anymore].
* "Oh no! Where [is my {thing}|did my {thing} go|can my {thing} be]?" {he} cried.
/ "My {adj_thing} is gone!" {name} cried.
? {He} felt <sad>.
/ A big tear ran down {his} cheek.
/ {He} wanted to cry, but {he} took a deep breath.

? First, {he} looked {spot_a}. [There was only {junk_a}.|{He} found {junk_a}, but no {thing}.]
/ {He} began to look for it. {spot_a_cap}, {he} found {junk_a}, but not the {thing}.
* Then {he} looked {spot_b}. [It was not there.|There was {junk_b}, and nothing else.]
/ Next, {he} searched {spot_b}, but [there was nothing|all {he} saw was {junk_b}].

* <just_then>, {a_helper} <came_by>. "Why are you so sad?" asked the {helper}.
/ <just_then>, {a_helper} <came_by> and asked, "What [is wrong|are you looking for], {name}?"
* "I lost my {adj_thing}," said {name} <softly>. "I looked and looked, but I cannot find it."
/ "My {thing} is lost," {name} said <softly>. "It is {adj}, and I miss it so much."
* "[Close your eyes and think|Sit down and think]," said the {helper}. "Where did you [play|stop] last?"
/ The {helper} said <kindly>, "Do not run around. Think first. Where were you [last|before you lost it]?"
* {name} thought [hard|for a while]. "I [sat down|had a rest] {spot_c}!" {he} said.
/ {name} closed {his} eyes and thought. "Now I know! I was {spot_c}!"

* They went to look together, and there was the {thing}, safe and sound {spot_c}!
/ They ran to see. There it was! The {adj_thing} was waiting {spot_c}.
? "<thanks>!" said {name} and <hugged> the {helper}.
/ {name} held the {thing} tight and felt <glad>. "<thanks> for helping me," {he} said.
? The {helper} <smiled> and said, "You found it all by yourself. I only helped you think."
/ "[I am happy to help|That is what friends are for]," said the {helper}.
* <from_then_on>, {name} <never_forgot> it is better to stop and think than to run and cry.
/ <from_then_on>, {name} always put the {thing} in a safe place before {he} played.
/ That night, {name} put the {thing} next to {his} pillow and [slept well|had sweet dreams].
"""

SHARING = """
* {He} had {a_thing}, and it was {his} favorite toy.
/ {His} {elder} had given {him} {a_thing}, and {he} loved it very much.
/ {He} had a new toy. It was {a_thing}, and {he} was <proud>.

* <one_day>, {name} [was playing with|played with] the {thing} {at_place}.
/ <one_day>, {name} took the {adj_thing} to the {place} to play.
* {His} friend {friend} [came up|came over] and watched. "May I [play with it|have a turn], please?"
/ {His} friend {friend} came too. "I like your {thing}," said {friend}. "Can I [try it|play with it] too?"
* "No!" said {name}. "It is mine!" {He} held the {thing} [tight|close].
/ {name} shook {his} head. "No, it is my {thing}," {he} said and turned away.
? {friend} [looked down|went away] and felt <sad>.
/ {friend} said nothing and sat down alone.

* {name} played with the {thing} all alone. But soon it was [not fun anymore|boring].
/ Now {name} had the {thing} all to {himself}, but {he} [did not feel happy|felt lonely].
? {He} looked at {friend} and [did not know what to do|felt a little bad].
/ There was nobody to laugh with.
* <just_then>, {a_helper} <came_by>. "Why do you look so [sad|unhappy]?" asked the {helper}.
/ {A_helper} saw it all and came closer. "Is your {thing} not fun?" asked the {helper}.
* "I have the [best|nicest] {thing}, but I am [lonely|not happy]," said {name}.
/ "I do not know," said {name}. "I wanted it for me, but playing alone is [no fun|sad]."
* "[A toy is like a song|A toy is like a joke]," said the {helper}. "It is better with two."
/ The {helper} said <kindly>, "When you share a toy, the fun gets bigger, not smaller."
/ "Try to share it," said the {helper}. "Then you have a toy and a friend."

* {name} thought about that. Then {he} walked over to {friend}.
/ {name} stood up and went to {friend} <fast>.
* "I am sorry," {he} said. "[Do you want to play with my {thing}|Would you like a turn with the {thing}]?"
/ "I was not nice," {he} said. "Please come and play with the {adj_thing}. You can go first."
* {friend} [jumped up|smiled]. "Yes! <thanks>!"
/ {friend} was <glad>. "I would love to!" {f_he} said.
? They took turns with the {thing} until the sun went down. They laughed [a lot|all the time].
/ They made up a new game with the {thing} and played [all day|until supper time].
? "This is much better," said {name}.
/ The {helper} watched them and <smiled>.
* That day, {name} <learned> sharing makes two people happy.
/ <from_then_on>, {name} and {friend} shared all their toys and were best friends.
/ {name} <never_forgot> a friend is worth more than a toy.
"""

MENDED = """
* {His} {elder} had made {a_thing} for {him}, and {he} used it every day.
/ {He} had {a_thing} that {he} loved very much.
/ The thing {he} liked best was {a_thing}.

* <one_day>, {name} was playing with the {thing} {at_place} with {his} friend {friend}.
/ <one_day>, {name} and {his} friend {friend} took the {adj_thing} to the {place} to play.
* Then [there was a loud crack|there was a funny sound], and {damage}.
/ They played too wildly, and [suddenly|all at once] {damage}.
/ {friend} tripped and fell on the {thing}, and {damage}.
* "Oh no! [My {thing} is broken|Look at my {thing}]!" cried {name}.
/ {name} looked at the broken {thing} and felt <sad>. "It is [ruined|broken]!" {he} said.
* "I am so sorry," said {friend}. "[Let us try to fix it|Maybe we can fix it]."
/ "Do not be sad," said {friend}. "We can [mend|fix] it together."

? First, they tried to fix it with [mud|a leaf|some grass|sticky honey], but it did not [hold|work].
/ They tried to hold it together with [a leaf|some mud|a piece of grass]. It fell apart again.
? {name} wanted to throw the {thing} away. "It is no use," {he} said.
/ "I give up," said {name} and kicked a stone.
* <just_then>, {a_helper} <came_by> and looked at the {thing}. "Do not give up," said the {helper}.
/ <just_then>, {a_helper} <came_by>. "Broken things can be mended," said the {helper}.
* "What do we need?" asked {name}. "You need {fix}," said the {helper}, "and a little time."
/ "All we need is {fix}. I have that at home, so come with me!"

* The {helper} showed them how to do it. {name} worked [slowly|with care], and {friend} held the {thing}.
/ {name} and {friend} worked [all afternoon|side by side], and the {helper} helped them with the hard part.
* It took a long time, but <in_the_end_low> the {thing} was [whole again|mended|as good as new].
/ <in_the_end>, the {adj_thing} was fixed. It [looked a little different|was even better than before].
? "We did it!" they [shouted|cried] <joyfully>.
/ "Look! It works again!" said {name} <joyfully>.
? "<thanks>," {name} said to the {helper}. The {helper} <smiled>.
/ {name} was <proud> because {he} had helped to fix it.
* {name} <learned> a broken thing is not the end if you have good friends.
/ <from_then_on>, {name} played with the {thing} more gently and loved it even more.
/ <from_then_on>, when something broke, {name} said, "Let us try to mend it first."
"""

CONFESSED = """
* In the house there was {a_thing}. {His} {elder} loved it very much.
/ {His} {elder} had {a_thing} that stood on [a shelf|the table] by the window.
? "Please do not play near the {thing}," {his} {elder} always said.
/ "Be careful with the {thing}," {his} {elder} often told {him}.

* <one_day>, {name} came home from the {place} and [threw {his} ball in the air|jumped around in the room].
/ <one_day>, after a walk to the {place}, {name} [ran through the house|danced in the room].
* Crash! The {thing} fell [down|to the floor] and broke.
/ Bump! {He} hit the {thing}, and it fell and broke into [two|three|many] pieces.
? {name} was <afraid>. {He} hid the pieces [under the bed|behind the curtain|in a box].
/ {His} heart beat fast. {He} pushed the pieces [under the rug|behind a chair].
* Soon {his} {elder} came in. "Where is my {adj_thing}?" {e_he} asked.
/ Then {his} {elder} came home. "Have you seen the {thing}?" asked {his} {elder}.
* "I do not know. [Maybe the cat took it|Maybe the wind did it]," said {name}. But it was a lie.
/ "It was not me," said {name}. "I [did not see it|was not here]." That was not true.

* {name} went back to the {place}, but {he} did not want to play. {His} tummy felt [heavy|bad].
/ {name} ran out to the {place} to be alone. The lie sat in {his} tummy like a [cold|heavy] stone.
* <just_then>, {a_helper} <came_by>. "You look [worried|sad]," said the {helper}. "What happened?"
/ {A_helper} sat down next to {him}. "Is there a secret that hurts?" asked the {helper}.
* "I broke the {thing}, and then I told a lie," {name} said <softly>.
/ {name} began to cry. "I broke the {adj_thing}, and I said it was not me."
* "A lie gets heavier every day," said the {helper}. "The truth makes you light again."
/ The {helper} said <kindly>, "Everyone breaks things. It takes a brave heart to tell the truth."
? "What if my {elder} is angry?" asked {name}. "[Say you are sorry|Tell it anyway]," said the {helper}.
/ "I am [afraid|scared]," said {name}. "I know," said the {helper}, "but you can do it."

* {name} went home and took a deep breath. "{Elder}, I broke the {thing}. I am [so|very] sorry that I lied."
/ So {name} walked home and said, "{Elder}, it was me. I broke your {thing} and told a lie. I am sorry."
* {His} {elder} was quiet for a moment. Then {e_he} gave {him} a hug.
/ {His} {elder} looked sad at first, but then {e_he} [smiled|took {his} hand].
* "<thanks> for telling me the truth," {e_he} said. "That is more important than {a_plain_thing}."
/ "I am glad that you told me," {e_he} said. "[You were very brave.|That was not easy.]"
? They [swept up|picked up] the pieces together, and {name} felt <glad_short> again.
/ Together they glued the {thing}. It had [a crack|some cracks], but it was still pretty.
* {name} <never_forgot> telling the truth is always better than hiding.
/ <from_then_on>, {name} always told the truth, even when it was hard.
"""

SAVING_UP = """
* {name} often walked past a little shop, and in the window there was {a_thing}.
/ In the window of a shop, {name} once saw {a_thing}.
? "I wish I had that {thing}," {he} said every day.
/ {He} wanted the {thing} more than anything in the world.

* <one_day>, {name} asked, "{Elder}, can I have the {adj_thing}, please?"
/ <one_day>, {name} went home and said, "{Elder}, I wish for the {adj_thing} in the shop!"
? "It costs [ten|five|seven|six] coins," said {his} {elder}. "You can [earn them|work for them] if you like."
/ {His} {elder} smiled. "You must save your coins for that. Good things take time."
* {name} looked into {his} little box. There was only one coin in it. {He} felt <sad>.
/ But {name} had only one coin. "That is not enough," {he} said <softly>.

* {He} went to the {place}. There {he} met {a_helper} who [was very busy|had a lot to do].
/ So {he} walked to the {place} to think. <just_then>, {a_helper} <came_by>.
* "Can I help you?" asked {name}. "I want to save up for {a_thing}."
/ "I need some coins for {a_thing}," said {name}. "Do you have any work for me?"
* "Yes," said the {helper}. "You can [sweep the path|pick up the leaves|stack the wood|water the plants]."
/ The {helper} nodded. "Help me [pick the apples|wash the windows|feed the hens]," said the {helper}.
* {name} worked hard, and {he} got a coin. The next day {he} came back and worked again.
/ The work was hard, but {name} did not stop. Each day {he} put one more coin into {his} box.
? One time {he} wanted to buy [candy|an ice cream] with the coins, but {he} [waited|said no] and kept them.
/ Some days {he} was tired and wanted to stop. "Think of the {thing}," said the {helper}.

* <in_the_end>, the box was full. {name} ran to the shop <fast>.
/ After [many days|two weeks|a long time], {name} had all the coins. {He} hurried to the shop.
* "Here are my coins," {he} said <joyfully>, and the [shopkeeper|kind shopkeeper] gave {him} the {thing}.
/ {He} counted the coins on the table, and then the {adj_thing} was {his_own}.
? {name} took it home and showed it to {his} {elder}. "I am so proud of you," said {his} {elder}.
/ {His} {elder} <hugged> {him}. "You did that all by yourself!" said {his} {elder}.
? The next day, {name} showed the {thing} to the {helper}, and they both laughed with joy.
/ {name} also went to thank the {helper}. "You worked well," said the {helper}.
* {name} loved the {thing} even more because {he} had worked and waited for it.
/ {name} <learned> if you work and wait, a wish can come true.
/ <from_then_on>, {name} <never_forgot> good things are worth waiting for.
"""
