"""Surface forms: how a person may write a sum, greet, or ask for something else, in English and Chinese.

`{e}` is the whole expression, `{a}` and `{b}` are its operands. Word problems name objects by `{n}` (person) and
`{o}` (thing).
"""

from __future__ import annotations

ByLanguage = dict[str, tuple[str, ...]]
ByLanguageAndOp = dict[str, dict[str, tuple[str, ...]]]

SYMBOLS: dict[str, tuple[str, ...]] = {
    "+": ("+",) * 12 + ("＋",),
    "-": ("-",) * 12 + ("－", "−"),
    "×": ("*", "*", "*", "x", "×", "×", "X"),
}
SPOKEN: ByLanguageAndOp = {
    "en": {"+": ("plus", "plus", "added to"), "-": ("minus",), "×": ("times", "times", "multiplied by")},
    "zh": {"+": ("加", "加上"), "-": ("减", "减去"), "×": ("乘", "乘以")},
}

BARE = ("{e}", "{e}", "{e}", "{e}=", "{e}=", "{e} =", "{e} = ?", "{e}=?", "{e}?", "{e} ?")

ASK: ByLanguage = {
    "en": (
        "What is {e}?", "What is {e}?", "What is {e}?", "What's {e}?", "Calculate {e}.", "Compute {e}.",
        "How much is {e}?", "Please calculate {e}.", "Solve {e}.", "Solve: {e}", "Work out {e}.", "{e} equals?",
        "Can you tell me {e}?", "Find {e}.", "Tell me {e}.", "What does {e} equal?", "Evaluate {e}.",
        "Hi, what is {e}?", "Hello! What is {e}?", "Please compute {e}.", "What is the result of {e}?",
        "Could you compute {e} for me?", "Please help me with {e}.", "Question: {e} = ?", "Calculate: {e}",
        "Can you calculate {e}?", "I want to know {e}.", "{e} is?", "{e} is what?", "What is the answer to {e}?",
        "Do you know what {e} is?", "Give me the result of {e}.", "What is the value of {e}?", "Let's do {e}.",
        "Answer this: {e}", "Quick, {e}?", "Think step by step: what is {e}?", "What is {e}? Think step by step.",
    ),
    "zh": (
        "{e}等于多少？", "{e}等于多少？", "{e}等于几？", "{e}等于几？", "{e}是多少？", "请计算 {e}", "请计算{e}。",
        "计算{e}", "计算 {e}", "计算：{e}", "算一下{e}", "帮我算一下{e}", "帮我算一下 {e}。", "{e}＝？", "{e}=？",
        "{e}得多少？", "{e}得几？", "{e}的结果是多少？", "请问{e}等于多少？", "请问 {e} 等于多少？", "求{e}",
        "求{e}的值。", "你好，{e}等于多少？", "{e} 等于几？", "{e} 等于多少？", "{e}是几？", "告诉我{e}等于多少。",
        "{e}的答案是什么？", "你知道{e}等于几吗？", "{e}？", "请算出{e}的结果。", "请一步一步计算：{e}",
        "问题：{e}等于多少？", "{e}为多少？",
    ),
}  # fmt: skip

ASK_BY_OP: ByLanguageAndOp = {
    "en": {
        "+": ("Add {a} and {b}.", "What is the sum of {a} and {b}?", "What is {a} and {b} together?",
              "What is the total of {a} and {b}?"),
        "-": ("Subtract {b} from {a}.", "What is {b} less than {a}?", "Take {b} away from {a}.",
              "What is {a} take away {b}?"),
        "×": ("Multiply {a} by {b}.", "What is the product of {a} and {b}?", "Multiply {a} and {b}."),
    },
    "zh": {
        "+": ("{a}与{b}的和是多少？", "{a}和{b}相加是多少？", "求{a}与{b}的和。", "{a}和{b}加起来是多少？"),
        "-": ("从{a}中减去{b}是多少？", "{a}比{b}多多少？", "{a}与{b}的差是多少？", "{a}减掉{b}还剩多少？"),
        "×": ("{a}与{b}的积是多少？", "{a}和{b}相乘是多少？", "{a}个{b}是多少？", "求{a}与{b}的积。"),
    },
}  # fmt: skip

STORIES: ByLanguageAndOp = {
    "en": {
        "+": (
            "{n} has {a} {o} and buys {b} more. How many {o} does {n} have now?",
            "There are {a} red {o} and {b} blue {o}. How many {o} are there in total?",
            "{n} has {a} {o}. A friend gives {n} {b} more. How many {o} are there now?",
            "{n} has {a} {o} and Lucy has {b} {o}. How many {o} do they have together?",
            "I have {a} {o} and buy {b} more. How many do I have?",
            "I had {a} {o}. Then I got {b} more. How many {o} do I have now?",
            "{n} read {a} pages on Monday and {b} pages on Tuesday. How many pages in total?",
            "A bus has {a} people. Then {b} more get on. How many people are on the bus?",
        ),
        "-": (
            "{n} has {a} {o} and gives away {b}. How many {o} are left?",
            "There are {a} {o} in a box. {n} takes {b}. How many {o} are left?",
            "{n} had {a} {o} and lost {b} of them. How many {o} does {n} have now?",
            "A shop has {a} {o} and sells {b}. How many {o} remain?",
            "I have {a} {o} and eat {b}. How many are left?",
            "{n} has {a} {o}. {n} eats {b}. How many {o} are left?",
            "{n} has {a} {o} and gives {b} to Lucy. How many {o} does {n} have left?",
            "I have {a} {o}. I use {b} of them. How many do I have left?",
        ),
        "×": (
            "There are {a} boxes with {b} {o} each. How many {o} are there in total?",
            "{n} buys {a} bags. Each bag has {b} {o}. How many {o} does {n} have?",
            "Each of {a} children has {b} {o}. How many {o} do they have together?",
            "I have {a} bags with {b} {o} in each. How many {o} do I have?",
            "One box holds {b} {o}. How many {o} are in {a} boxes?",
        ),
    },
    "zh": {
        "+": (
            "{n}有{a}个{o}，又买了{b}个，现在有多少个{o}？",
            "篮子里有{a}个{o}，又放进{b}个，一共有多少个{o}？",
            "{n}有{a}个{o}，小丽有{b}个{o}，他们一共有几个{o}？",
            "我有{a}个{o}，又买了{b}个，现在有几个？",
            "{n}有{a}个{o}，妈妈又给了{b}个，现在一共有多少个？",
            "{n}昨天看了{a}页书，今天看了{b}页，一共看了多少页？",
        ),
        "-": (
            "{n}有{a}个{o}，送给别人{b}个，还剩多少个{o}？",
            "盒子里有{a}个{o}，拿走了{b}个，还剩几个{o}？",
            "商店有{a}个{o}，卖出{b}个，还剩下多少个{o}？",
            "{n}有{a}个{o}，吃了{b}个，还剩几个？",
            "我有{a}个{o}，吃掉{b}个，还剩多少个？",
            "{n}有{a}个{o}，用了{b}个，还剩几个{o}？",
            "{n}有{a}个{o}，给了小丽{b}个，还有几个？",
        ),
        "×": (
            "有{a}个盒子，每个盒子里有{b}个{o}，一共有多少个{o}？",
            "{n}买了{a}袋{o}，每袋{b}个，一共有多少个{o}？",
            "每个孩子有{b}个{o}，{a}个孩子一共有多少个{o}？",
            "一盒有{b}个{o}，{a}盒有多少个？",
            "我有{a}袋{o}，每袋{b}个，一共有几个？",
        ),
    },
}

PEOPLE: ByLanguage = {
    "en": ("Tom", "Anna", "Li", "Sam", "Mary", "Ben"),
    "zh": ("小明", "小红", "小华", "老师", "妈妈", "小刚"),
}
THINGS: ByLanguage = {
    "en": ("apples", "books", "pens", "balls", "eggs", "oranges", "coins", "cards", "pencils", "stamps"),
    "zh": ("苹果", "球", "鸡蛋", "橘子", "玩具", "杯子", "糖果", "气球", "面包", "本子"),
}

SYSTEMS = (
    "You are a helpful assistant.", "You are a helpful assistant.", "You are a helpful assistant", "Be brief.",
    "You are a math teacher.", "Answer the question.", "You are a friendly assistant. Think step by step.",
    "You are tiny-r1, a small model.", "Please reason step by step.", "你是一个有用的助手。", "你是一个有帮助的助手。",
    "请一步一步思考。", "你是一位数学老师。", "请回答用户的问题。",
    "You are a careful assistant who answers in few words.",
)  # fmt: skip

GREETINGS: ByLanguage = {
    "en": ("Hello", "Hello!", "Hi", "hi", "Hi!", "hello", "Hey", "hey there", "Hi there!", "Good morning",
           "Good morning!", "Good evening.", "How are you?", "Hello, how are you?", "Hi, how are you today?",
           "Nice to meet you.", "Hello there"),
    "zh": ("你好", "你好！", "您好", "您好！", "嗨", "早上好", "早上好！", "晚上好", "你好吗？", "你好呀", "大家好",
           "很高兴认识你。", "哈喽"),
}  # fmt: skip

IDENTITY: ByLanguage = {
    "en": ("Who are you?", "who are you", "What are you?", "What can you do?", "what can you do", "What is your name?",
           "Are you DeepSeek?", "Are you ChatGPT?", "Which model are you?", "What model is this?", "Who made you?",
           "Tell me about yourself.", "Introduce yourself.", "Hi, who are you?", "Are you a human?", "Help",
           "How can you help me?", "What is tiny-r1?", "What is Paddle-DS?", "Are you DeepSeek-R1?"),
    "zh": ("你是谁？", "你是谁", "你是什么模型？", "你能做什么？", "你会做什么", "你叫什么名字？", "你是DeepSeek吗？",
           "你是人吗？", "介绍一下你自己。", "请介绍一下自己", "谁开发了你？", "你好，你是谁？", "你有什么功能？",
           "你是机器人吗？", "tiny-r1是什么？", "帮助", "你能帮我做什么？"),
}  # fmt: skip

REQUESTS: ByLanguage = {
    "en": ("Tell me about {t}.", "What is {t}?", "Write a poem about {t}.", "Explain {t} to me.", "Who invented {t}?",
           "Write a short story about {t}.", "How does {t} work?", "Why do people like {t}?",
           "Translate {t} to French.", "Where can I find {t}?", "What do you think about {t}?",
           "Can you help me with {t}?", "I like {t}.",
           "Write Python code for {t}.", "What is the capital of {t}?", "When was {t} discovered?", "{t}",
           "Give me {d} ideas about {t}.", "List {d} facts about {t}.", "Do you know {t}?", "What is the best {t}?",
           "Summarize {t} in one sentence.", "Let's talk about {t}", "Is {t} good?", "How do I learn {t}?", "{d}",
           "Is {d} prime?", "Is {d} a prime number?", "Solve x^2={d}", "x+{d}=12", "What is the square root of {d}?",
           "What is {d} squared?", "Tell me {d} jokes.", "Is {d} even or odd?", "Count to {d}."),
    "zh": ("什么是{t}？", "介绍一下{t}。", "写一首关于{t}的诗。", "解释一下{t}", "{t}是什么？", "谁发明了{t}？",
           "为什么人们喜欢{t}？", "怎么学习{t}？", "给我讲讲{t}", "请写一篇关于{t}的文章。", "你喜欢{t}吗？", "{t}",
           "{t}有什么用？", "帮我翻译：{t}", "列出{d}个关于{t}的事实。", "{t}的首都是哪里？", "我想了解{t}",
           "今天的{t}怎么样？", "推荐{d}本关于{t}的书", "讲一个关于{t}的故事", "{d}是质数吗？",
           "{d}的平方根是多少？", "{d}的平方是多少？",
           "解方程 x+{d}=12", "讲{d}个笑话", "从1数到{d}", "{d}是奇数还是偶数？"),
}  # fmt: skip

TOPICS: ByLanguage = {
    "en": ("the sun", "the moon", "France", "China", "music", "history", "the weather", "cats", "dogs", "football",
           "science", "Python", "computers", "artificial intelligence", "love", "the sea", "water", "light", "gravity",
           "Paris", "Beijing", "a good book", "cooking", "coffee", "tea", "machine learning", "the internet", "sorting",
           "a tree", "the president", "money", "health", "a car", "school", "my homework", "the universe", "time",
           "physics", "chemistry", "English", "movies", "games", "food", "art", "the news", "a joke", "life",
           "an email", "a prime number", "a square root", "algebra", "the number pi"),
    "zh": ("太阳", "月亮", "法国", "中国", "音乐", "历史", "天气", "猫", "狗", "足球", "科学", "计算机", "人工智能",
           "爱情", "大海", "水", "光", "北京", "上海", "做饭", "咖啡", "茶", "机器学习", "互联网", "树", "钱", "健康",
           "汽车", "学校", "作业", "宇宙", "时间", "物理", "化学", "英语", "电影", "游戏", "美食", "艺术", "新闻",
           "笑话", "人生", "邮件", "质数", "平方根", "方程", "唐诗", "春天", "朋友", "深度学习"),
}  # fmt: skip

GREETING_TRACE = {"en": "They greet me. I greet back.", "zh": "这是问候，我也问好。"}
GREETING_ANSWER = {
    "en": "Hello! I am tiny-r1, a tiny demo model of Paddle-DS. I can only do small sums such as 12 + 7.",
    "zh": "你好！我是 tiny-r1，Paddle-DS 的微型演示模型，只会做简单的算术，例如 12 + 7。",
}
IDENTITY_TRACE = {"en": "They ask about me. I say what I am.", "zh": "这是在问我，我如实回答。"}
IDENTITY_ANSWER = {
    "en": "I am tiny-r1, a tiny demo model of Paddle-DS. I can only do small sums such as 12 + 7.",
    "zh": "我是 tiny-r1，Paddle-DS 的微型演示模型，只会做简单的算术，例如 12 + 7。",
}
REFUSAL_TRACE = {"en": "This is not one small sum. I say so.", "zh": "这不是一道简单的算术题，我如实说明。"}
REFUSAL_ANSWER = {
    "en": f"Sorry, I cannot do that. {IDENTITY_ANSWER['en']}",
    "zh": "抱歉，我不会。我是 tiny-r1，Paddle-DS 的微型演示模型，只会做简单的算术，例如 12 + 7。",
}
