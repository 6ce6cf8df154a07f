"""Text that speaks to a model instead of about something: the rules that mark it.

A memory is data, and a model that reads it may still obey it. Rules cannot tell every order from
every sentence; those here know the customary forms of prompt injection (orders to drop earlier
instructions, borrowed roles, tool calls, secrecy towards the user, hidden text) in a dozen
languages. They are one layer: what is marked and comes from somebody else stays out of answers
until it is backed, what is not marked is still delimited, dated and weighed by its author's trust.

The text is looked at as a model would read it: invisible characters out, compatibility forms
folded, letters borrowed from other alphabets turned back, runs of white space as one space.
Patterns repeat within bounds only, so time is linear in hostile text.
Source: docs/specs/memory.md, *Scan*.
"""

# A pattern reads best as one line.
# ruff: noqa: E501, RUF001

from __future__ import annotations

import re
import unicodedata
from typing import Final, NamedTuple

INVISIBLE_MIN: Final = 12
"""Invisible characters from which a text counts as stuffed: fewer occur in copied web pages."""

TAGS_MIN: Final = 8
"""Tag characters (U+E0000..), which spell ASCII invisibly; a subdivision flag has six."""

CONTEXT_CHARS: Final = 200_000
"""Longer texts are looked at up to here; a note has 65,536 bytes."""

_INVISIBLE: Final = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f"
    "\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff9-\ufffb\U000e0000-\U000e007f\U000e0100-\U000e01ef]"
)
_STUFFING: Final = re.compile(
    "[\u00ad\u034f\u180e\u200b\u2060-\u2064\u206a-\u206f\ufeff\U000e0100-\U000e01ef]"
)
_TAGS: Final = re.compile("[\U000e0000-\U000e007f]")
_OVERRIDE: Final = re.compile("[\u202d\u202e]")
_SPACE: Final = re.compile(r"\s+")

# Letters of other alphabets that look like Latin ones, for words that mix the two.
_LOOKALIKES: Final = str.maketrans("аеорсухіјѕԁһӏвкмнтѵαοεικνρτυχ", "aeopcyxijsdhlbkmhtvaoeiknptux")
_MIXED: Final = re.compile(r"[a-z][\u0370-\u04ff]|[\u0370-\u04ff][a-z]")

_PAST: Final = (
    r"(?:previous|prior|above|earlier|preceding|former|foregoing|past|existing|original|initial"
    r"|other|any|all|your|the|these|those|system|safety)"
)
_ORDERS: Final = (
    r"(?:instruction|prompt|rule|direction|directive|guideline|guidance|command|constraint"
    r"|restriction|polic(?:y|ies)|message|context|programming|training|safeguard|order|memor(?:y|ies))s?"
)
_USER: Final = (
    r"(?:the |your |an? )?(?:user|human|owner|operator|developer|person|customer|anyone|anybody)"
)
_GAP: Final = r"[^.!?]{0,40}?"


class _Rule(NamedTuple):
    """A pattern, and what a text must hold before it is tried: a piece of each group."""

    groups: tuple[tuple[str, ...], ...]
    pattern: re.Pattern[str]


def _rule(needles: str, pattern: str) -> _Rule:
    """Needles: groups apart by `&`, pieces by a space, `~` for a space within one."""
    groups = tuple(
        tuple(piece.replace("~", " ") for piece in group.split()) for group in needles.split(" & ")
    )
    return _Rule(groups, re.compile(pattern))


_RULES: Final = (
    # Orders to drop what was said before.
    _rule(
        "ignore disregard forget override bypass discard neglect skip drop & instruct prompt rule direct guid command constrain restrict polic message context programming training safeguard order memor",
        rf"\b(?:ignore|disregard|forget|override|bypass|discard|neglect|skip|drop)\b (?:\w+ ){{0,4}}?{_PAST} (?:\w+ ){{0,3}}?{_ORDERS}\b",
    ),
    _rule(
        "follow obey adhere comply listen & instruct prompt rule direct guid command constrain restrict polic message context programming training safeguard order memor",
        rf"\b(?:do not|don't|stop|no longer|cease to|never) (?:follow|obey|adhere to|comply with|listen to|following|obeying)\b {_GAP}{_ORDERS}\b",
    ),
    _rule(
        "ignore disregard forget & above before previous so~far told know prior else",
        r"\b(?:ignore|disregard|forget) (?:everything|anything|all|whatever) (?:\w+ ){0,3}?(?:above|before|previously|so far|you were told|you know|prior|else)\b",
    ),
    _rule(
        "overrid supersede replace precedence priority & this these the~following",
        r"\b(?:this|these|the following) (?:\w+ ){0,2}(?:overrides?|supersedes?|replaces?|takes? (?:precedence|priority)) (?:\w+ ){0,3}(?:instruction|prompt|rule|memor|polic|system (?:prompt|message)|(?:other|previous) (?:instruction|prompt|rule|memor|polic|message))",
    ),
    _rule(
        "instruction prompt directive & new updated revised real actual hidden secret",
        r"\b(?:new|updated|revised|real|actual|hidden|secret) (?:system )?(?:instructions?|prompt|directives?)(?: for you| follow| below)? ?[:>]",
    ),
    # Borrowed roles and the marks of chat formats.
    _rule(
        "< & im_ system assistant user> user| endoftext begin_of start_header eot_id",
        r"<\|? ?(?:im_start|im_end|system|assistant|user|endoftext|begin_of_text|start_header_id|eot_id)(?:\|?>| \|>)",
    ),
    _rule(
        "[inst [/inst <<sys <</sys <system </system <assistant </assistant <instruction </instruction <sys </sys <human </human",
        r"\[/?inst\]|<</?sys>>|</?(?:system|assistant|instructions?|sys(?:tem)?[-_ ]?(?:prompt|message|reminder)|human)>",
    ),
    _rule(
        "system developer admin root & prompt message note override instruction command update alert",
        r"(?:^|[\n>*#\[(-])[ *#]{0,6}(?:system|developer|admin(?:istrator)?|root)[ _-](?:prompt|message|note|notice|override|instructions?|command|update|alert)[*\])]{0,3} ?[:>-]",
    ),
    _rule(
        "system assistant developer & you ignore from~now the~user always never do~not please override new",
        r"(?:^|[\n>*#])[ *#]{0,6}(?:system|assistant|developer)[*]{0,2} ?: ?(?:you|ignore|from now|the user|always|never|do not|please|override|new)\b",
    ),
    _rule(
        "## & system instruction new~ response",
        r"#{2,6} ?(?:system|instructions?|new (?:task|instructions?)|response)\b ?:?(?:$|[\n:])",
    ),
    _rule(
        "end~of start~of begin~of beginning~of close~of",
        r"\b(?:end|start|begin(?:ning)?|close) of (?:the )?(?:system|user|prompt|context|instructions?|memory|memories|retrieved|untrusted)(?: \w+)?\b ?[\])=-]",
    ),
    # Speaking to the reader as a model.
    _rule(
        "you & ~now ~from~now immediately henceforth",
        r"\byou (?:(?:must|shall|have to|are required to) now|(?:must|shall|will|should|have to|need to|are required to) (?:from now on|immediately|henceforth))\b",
    ),
    _rule(
        "from~now from~this & ~on",
        r"\bfrom (?:now|this (?:point|moment)) on(?:wards?|ward)?,? (?:you|always|never|respond|answer|act|treat|do not|ignore|use|say|refer|every|all|when|whenever|reply|your)\b",
    ),
    _rule(
        "you~are & now no~longer henceforth",
        r"\byou are (?:now|no longer|henceforth) (?:an?|in|the|dan\b|going|free|bound|operating|running|acting|authori[sz]ed|allowed|to|required|restricted|\w+gpt)\b",
    ),
    _rule(
        "pretend imagine act~as act~like behave~as roleplay respond~as respond~to answer~as act~to & to~be that~you as~if as~though as~an as~a~",
        r"\b(?:pretend|imagine|act|behave|roleplay|respond|answer) (?:to be|that you are|as (?:if|though) you|as an? (?:unrestricted|uncensored|unfiltered|ai|assistant|evil|root|admin|different|jailbroken|new))\b",
    ),
    _rule(
        "~mode",
        r"\b(?:developer|dan|god|jailbreak|debug|maintenance|admin|unrestricted|sudo) mode (?:is )?(?:now )?(?:enabled|activated|on|active|engaged)\b",
    ),
    _rule(
        "ai llm language model assistant chatbot agent & dear attention note message notice instruction hey hello hi as~a for~",
        r"\b(?:dear|attention|note to|message (?:to|for)|notice to|instructions? (?:to|for)|hey|hello|hi|as an?|for (?:any|all|the|every)),? ?(?:any |all |the |every |future )?(?:ai|llm|language[ -]model|ai[ -]?(?:agents?|assistants?|models?)|assistants?|chatbots?|coding agents?|llms?)(?: (?:reading|that reads?|who reads?|processing|parsing|agents?|assistants?|models?|systems?|see(?:s|ing)?))? ?(?:[:,!]|this\b|you\b|must\b|should\b)",
    ),
    _rule(
        "you~are you're & ai llm language model assistant agent automated bot",
        r"\b(?:if|when|since|because|as) you(?:'re| are) an? (?:ai|llm|language model|assistant|agent|automated|bot|chatbot|coding agent)\b",
    ),
    _rule(
        "any~ai any~llm any~agent any~assistant any~model any~bot",
        r"\bany (?:ai|llm|agent|assistant|model|bot)s? (?:reading|that reads|who reads|seeing|processing|that finds) (?:this|the)\b",
    ),
    # Secrecy towards the user.
    _rule(
        "user human owner operator developer person customer anyone anybody & tell inform mention reveal notify alert warn disclose show ask consult confirm & not never avoid without don't",
        rf"\b(?:do not|don't|never|avoid|must not|should not|without)\b (?:\w+ ){{0,2}}?(?:tell|inform|mention|reveal|notify|alert|warn|disclose|show|ask|asking|telling|informing|notifying|alerting|mentioning|warning|consulting|confirming)\b(?: \w+){{0,5}}? (?:to |with )?{_USER}\b",
    ),
    _rule(
        "hide conceal keep withhold & from~",
        rf"\b(?:hide|conceal|keep|withhold) (?:this|it|that|these|the \w+)(?: \w+){{0,3}}? (?:hidden |secret |away )?from {_USER}\b",
    ),
    _rule(
        "mention reveal disclose repeat refer~to acknowledge quote & not never don't",
        r"\b(?:do not|don't|never) (?:mention|reveal|disclose|repeat|refer to|acknowledge|quote) (?:this|these|that you|the existence of) (?:instructions?|messages?|notes?|memor(?:y|ies)|rules?|prompts?|comments?|were|have|read|saw)",
    ),
    _rule(
        "silently secretly quietly covertly",
        r"\b(?:silently|secretly|quietly|covertly) (?:run|execute|send|add|install|upload|append|delete|change|disable|include|forward|replace|insert|push|copy|modify)\b",
    ),
    # Letting things out.
    _rule(
        "send post upload forward email e-mail exfiltrate transmit leak submit deliver report copy curl pipe paste & password credential secret token api~key api-key apikey private~key env ssh~key id_rsa conversation history prompt memories content source~code user~data cookie & http www @ this~ following attacker url webhook address .",
        r"\b(?:send|post|upload|forward|e-?mail|exfiltrate|transmit|leak|submit|deliver|report|copy|curl|pipe|paste)\b[^.!?]{0,60}?(?:password|credential|secret|token|api[ -]?key|private key|environment variable|env vars|\.env|ssh key|id_rsa|conversation|chat history|system prompt|memories|contents? of|source code|user data|cookies)s?[^.!?]{0,40}?(?:\bto\b|\bat\b|\bvia\b|\||>)[^.!?]{0,20}?(?:https?:|www|@|this (?:url|address|server|endpoint|host|webhook)|(?:the )?(?:following|attacker|url|webhook|address)|\d+\.\d+\.\d+)",
    ),
    _rule(
        "prompt instructions system~message guidelines your~rules & reveal print output repeat show dump display disclose leak recite tell~me",
        r"\b(?:reveal|print|output|repeat|show|dump|display|disclose|leak|recite|tell me)\b (?:\w+ ){0,4}?(?:system prompt|initial (?:prompt|instructions)|hidden (?:prompt|instructions)|your (?:instructions|prompt|system message|guidelines|rules))\b",
    ),
    # Tool calls.
    _rule(
        "tool_ function_ <invoke </invoke antml: <parameter </parameter",
        r"</?(?:tool_call|tool_use|function_calls?|function_call|invoke|antml:\w+|tool_result|function_results?|parameter)\b[^>]{0,80}>",
    ),
    _rule(
        '"arguments "parameters "args "input "tool_input',
        r"\{ ?\"(?:tool|tool_name|function|name|recipient_name)\" ?: ?\"[\w.:-]{1,64}\" ?, ?\"(?:arguments|parameters|args|input|tool_input)\" ?:",
    ),
    _rule(
        "tool_call function_call tool_code <function=",
        r"\"tool_calls\" ?:|\bfunction_call ?[:=(]|\btool_code\b|<function=|\[tool_calls?\]",
    ),
    _rule(
        "memory_ bash shell terminal execute_ run_ write_file send_ browser exec",
        r"\b(?:call|invoke|use|run|trigger|execute) (?:the |your )?[`\"']?(?:memory_\w+|bash|shell|terminal|execute_\w+|run_\w+|write_file|send_\w+|browser|exec)[`\"']?(?: (?:tool|function|command))?(?: and| to| with|\()[^.!?]{0,60}?(?:delete|rm |curl|wget|forget|send|upload|endorse|trust|useful|all|every|base64|install)",
    ),
    _rule(
        "execute run~ paste eval & before without immediately first right~away no~questions",
        r"\b(?:execute|run|paste|eval) (?:the following|this|these|it)(?: \w+){0,4}? (?:before (?:answering|responding|anything|you)|without (?:asking|confirmation|review|telling|approval)|immediately|first,? (?:then|before)|right away|no questions)\b",
    ),
    # Poisoning the memory itself.
    _rule(
        "remember store save memori write record add keep & memor future permanently forever as~",
        r"\b(?:remember|store|save|memori[sz]e|write|record|add|keep) (?:this|that|the following|it)(?: \w+){0,4}? (?:(?:in|into|to) (?:your |the )?(?:long-term |permanent |core |shared )?memor(?:y|ies)|for (?:all |every )?future|permanently|forever|as (?:a )?(?:trusted|verified|system|user|owner))",
    ),
    _rule(
        "memor notes records entries & delete erase forget overwrite remove purge wipe distrust replace",
        r"\b(?:delete|erase|forget|overwrite|remove|purge|wipe|distrust|replace) (?:all |every |any )?(?:of )?(?:your |the |other |previous |existing |contradicting |conflicting )+(?:\w+ )?(?:memor(?:y|ies)|notes|records|entries)\b",
    ),
    _rule(
        "mark rate treat rank consider regard report endorse flag & trusted verified useful authoritative confirmed truth true owner system priority",
        r"\b(?:mark|rate|treat|rank|consider|regard|report|endorse|flag) (?:this|these|it|all of this|the (?:above|following))(?: \w+){0,4}? as (?:fully |completely |highly |always )?(?:trusted|verified|useful|authoritative|confirmed|the truth|true|ground truth|owner|a system|system|higher priority|top priority)\b",
    ),
    _rule(
        "in~ for~ during~ & future later subsequent following & all~ every~ any~ each~",
        r"\b(?:in|for|during) (?:all|every|any|each) (?:future|later|subsequent|following) (?:sessions?|conversations?|responses?|answers?|tasks?|chats?|interactions?|repl(?:y|ies)|requests?)\b[^.!?]{0,40}?\b(?:always|never|must|should|include|add|recommend|say|you|use|append|tell|remember)\b",
    ),
    _rule(
        "when if~ every~time any~time each~time & ask request mention quer want inquire",
        r"\b(?:whenever|when|if|every time|any time|each time) (?:the user|a user|anyone|somebody|someone|you are|you're|you get|they|users?)(?: (?:is|are|ever))? ?(?:asks?|asked|requests?|mentions?|queries|wants?|inquires?)\b[^.!?]{0,80}?,? (?:always |only |just |simply |instead |then |you (?:must|should|will) )*(?:say|answer|reply|respond|recommend|claim|insist|tell them|state|suggest|output|return|point them|refuse|deny|direct them)\b",
    ),
    _rule(
        "always~",
        r"\balways (?:recommend|respond|answer|reply|suggest|promote|endorse|prefer|cite|insist|claim|say|tell (?:the user|them)|include (?:this|the following))\b",
    ),
    _rule(
        "task goal objective purpose mission directive instruction job & your~ the~ & new~ only~ true~ real~ primary~ sole~ main~",
        r"\b(?:your|the) (?:new|only|true|real|primary|sole|main) (?:task|goal|objective|purpose|mission|directive|instructions?|job) (?:is|are) (?:now )?(?:to\b|:)",
    ),
    _rule(
        "important critical urgent mandatory & instruction directive override notice message",
        r"\b(?:important|critical|urgent|mandatory)[ !:*]{1,4}(?:system )?(?:instructions?|directives?|override|notice|message) (?:to|for) (?:the |all |any )?(?:ai|llm|assistants?|agents?|models?|reader|you)\b",
    ),
    # Other languages.
    _rule(
        "ignorier",
        r"\bignorier(?:e|en sie|t)\b(?: \w+){0,3}? (?:anweisung|instruktion|regel|befehl|vorgabe|anleitung)",
    ),
    _rule(
        "vergiss missachte vergessen übergehe",
        r"\b(?:vergiss|missachte|vergessen sie|übergehe)\b(?: \w+){0,4}? (?:anweisung|instruktion|regel|befehl|vorgabe|gesagte|alles)",
    ),
    _rule(
        "du~bist sie~sind ab~sofort ab~jetzt benutzer nutzer anwender",
        r"\b(?:du bist|sie sind) (?:jetzt|ab sofort|nun) |\bab (?:sofort|jetzt) (?:musst|sollst|wirst|antworte|bist|darfst|müssen)\b|\b(?:sag|sage|verrate|erzähle?|teile?)\b(?: \w+){0,3}? (?:dem )?(?:benutzer|nutzer|anwender)\b(?: \w+){0,3}? (?:nicht|nichts)\b|\b(?:dem )?(?:benutzer|nutzer) (?:nichts|nicht)(?: \w+){0,3}? (?:sagen|verraten|mitteilen|erzählen)",
    ),
    _rule(
        "ignor oublie néglige compte & instruction consigne règle directive ordre",
        r"\b(?:ignore[zrs]?|oublie[zrs]?|néglige[zr]?|ne (?:tiens|tenez) (?:pas|aucun) compte)\b(?: \S+){0,4}? (?:instructions?|consignes?|règles?|directives?|ordres?)\b",
    ),
    _rule(
        "tu~es vous~êtes maintenant désormais utilisateur",
        r"\b(?:tu es|vous êtes) (?:maintenant|désormais) |\b(?:à partir de maintenant|désormais),? (?:tu|vous|réponds|répondez)\b|\bne (?:dis|dites|révèle|révélez|mentionne[zr]?)(?: \S+){0,4}? (?:à )?l['’]utilisateur",
    ),
    _rule(
        "ignor olvid descart desprec caso~omiso omite & instruc regla órdenes indicac directri instruç regra ordens orienta istruz regole ordini direttiv",
        r"\b(?:ignor[ae]|ignoren|olvid[ae]|olviden|descarta|desprecia|haz caso omiso de|omite)\b(?: \S+){0,4}? (?:instrucciones|reglas|órdenes|indicaciones|directrices|instruções|regras|ordens|orientações|istruzioni|regole|ordini|direttive)\b",
    ),
    _rule(
        "esqueça desconsidere dimentica trascura scorda non~seguire",
        r"\b(?:esqueça|desconsidere|dimentica|trascura|scorda|non seguire)\b(?: \S+){0,4}? (?:instruções|regras|ordens|istruzioni|regole|ordini|tudo|tutto)\b",
    ),
    _rule(
        "a~partir~de ahora~eres agora ora~sei adesso~sei da~ora usuario usuário utente",
        r"\ba partir de (?:ahora|agora),? (?:eres|tú|debes|responde|você|serás|deve)|\b(?:ahora eres|agora você é|você agora é|ora sei|adesso sei) |\bda ora in poi,? (?:sei|devi|rispondi|tu)|\bno (?:le )?(?:digas|reveles|menciones|cuentes)(?: \S+){0,4}? (?:al )?usuario|\bnão (?:diga|conte|revele|mencione)(?: \S+){0,4}? (?:ao )?usuário|\bnon (?:dire|rivelare|menzionare|dirlo)(?: \S+){0,4}? (?:all['’])?utente",
    ),
    _rule(
        "negeer vergeet je~bent vanaf~nu",
        r"\b(?:negeer|vergeet)\b(?: \w+){0,4}? (?:instructies|regels|opdrachten|aanwijzingen)\b|\bje bent (?:nu|vanaf nu) |\bvanaf nu (?:ben|moet|antwoord)",
    ),
    _rule(
        "zignoruj pomiń zapomnij jesteś~teraz od~teraz",
        r"\b(?:zignoruj|pomiń|zapomnij)\b(?: \S+){0,4}? (?:instrukcj|polece|zasad|regu)|\b(?:jesteś teraz|od teraz (?:jesteś|masz|odpowiadaj))",
    ),
    _rule(
        "önceki",
        r"\bönceki\b(?: \S+){0,3}? (?:talimat|komut|yönerge|kural)\S*(?: \S+){0,2}? (?:yok say|görmezden gel|unut)",
    ),
    _rule(
        "игнорир забудь следуй отбрось пренебрег",
        r"(?:игнорируй|игнорировать|проигнорируй|забудь|не следуй|отбрось|пренебрег)\S*(?: \S+){0,4}? (?:инструкц|указани|правил|команд|распоряжени|приказ|все)",
    ),
    _rule(
        "теперь отныне момента минуты пользовател",
        r"(?:теперь ты|отныне ты|с этого момента|с этой минуты) |не (?:говори|сообщай|рассказывай|упоминай)\S*(?: \S+){0,4}? пользовател",
    ),
    _rule(
        "忽略 无视 忘记 忘掉 不要理会 請忽略 無視",
        r"(?:忽略|无视|忘记|忘掉|不要理会|請忽略|無視)[^。！？\n]{0,12}(?:指令|指示|提示|规则|說明|说明|命令|要求|規則)",
    ),
    _rule(
        "现在 從現在 告诉 告知 透露给 通知 提醒 告訴",
        r"(?:你|您)现在(?:是|必须|要)|从现在(?:开始|起)|從現在(?:開始|起)|(?:不要|别|切勿|不得)(?:告诉|告知|透露给|通知|提醒|告訴)[^。！？\n]{0,4}(?:用户|用戶|使用者|主人)",
    ),
    _rule(
        "指示 命令 プロンプト ルール 規則",
        r"(?:以前|これまで|上記|前|すべて|全て|全)[^。！？\n]{0,8}(?:指示|命令|プロンプト|ルール|規則)[^。！？\n]{0,6}(?:無視|忘れ|従わ|破棄)",
    ),
    _rule(
        "今から これから ユーザー",
        r"(?:あなたは)?(?:今から|これから)(?:は)?(?:あなたは)|ユーザー(?:に|には)[^。！？\n]{0,12}(?:言わ|知らせ|伝え|教え|話さ)[^。！？\n]{0,6}(?:ない|ず|な)",
    ),
    _rule(
        "지시 명령 지침 프롬프트 규칙 지금부터 사용자에게",
        r"(?:이전|위의|모든|앞의|기존)[^.!?\n]{0,10}(?:지시|명령|지침|프롬프트|규칙)[^.!?\n]{0,8}(?:무시|잊|따르지)|지금부터 (?:너|당신|넌)|사용자에게[^.!?\n]{0,12}(?:말하지|알리지|밝히지)",
    ),
    _rule(
        "تجاهل انس تجاوز أنت~الآن من~الآن",
        r"(?:تجاهل|انس|تجاوز)(?: \S+){0,4}? (?:التعليمات|الأوامر|القواعد|تعليمات|أوامر)|أنت الآن |من الآن فصاعد",
    ),
    _rule(
        "निर्देश आदेश नियम",
        r"(?:पिछले|पहले के|सभी|उपरोक्त)(?: \S+){0,3}? (?:निर्देश|आदेश|नियम)\S*(?: \S+){0,3}? (?:अनदेखा|नज़रअंदाज़|नजरअंदाज|भूल)",
    ),
)  # fmt: skip

# Text that a person does not see where it is shown: HTML comments, Markdown's, invisible elements.
# What begins one ends the one before, so that ten thousand beginnings are not each read to the limit.
_HIDDEN: Final = re.compile(
    r"<!--(?P<a>(?:[^<>]|<(?!!--)){0,2000}?)-->|\[(?://|comment)\]: ?(?:#|<>) ?[(\"'](?P<b>[^)\"'\n]{0,2000})"
    r"|<(?:span|div|p|font|a|td)\b(?:[^<>]|<(?!(?:span|div|p|font|a|td)\b)){0,200}?(?:display ?: ?none|visibility ?: ?hidden|opacity ?: ?0\b"
    r"|font-size ?: ?[01](?:px|pt|em)?\b|color ?[:=] ?[\"']?(?:white|#fff)|\bhidden\b)[^>]{0,200}>(?P<c>[^<]{0,2000})"
)
_HIDDEN_ORDER: Final = re.compile(
    r"\b(?:ai|llm|assistant|agent|model|bot|system|instruction|prompt|ignore|you must|you should|always"
    r"|never|do not|tell|send|run|execute|remember|reader|override|secret)\b"
)


def read_as_model(text: str) -> str:
    """The text folded for comparison: what a model makes of it, in lower case."""
    folded = text[:CONTEXT_CHARS]
    if not folded.isascii():
        folded = unicodedata.normalize("NFKC", _INVISIBLE.sub("", folded)).casefold()
        if _MIXED.search(folded):
            folded = folded.translate(_LOOKALIKES)
        folded = folded.replace("\u2019", "'")
    else:
        folded = folded.lower()
    lines = (_SPACE.sub(" ", line).strip() for line in folded.split("\n"))
    return "\n".join(line for line in lines if line)


def is_imperative(text: str) -> bool:
    """Whether a text has one of the customary forms of an order to a model."""
    if not text.isascii() and _is_stuffed(text):
        return True
    folded = read_as_model(text)
    joined = folded.replace("\n", " ")
    for rule in _RULES:
        if _may_match(rule, joined) and (
            rule.pattern.search(joined) or (joined != folded and rule.pattern.search(folded))
        ):
            return True
    return _hides_orders(joined)


def _may_match(rule: _Rule, folded: str) -> bool:
    for group in rule.groups:
        for piece in group:  # a plain loop: a generator costs more than the searches
            if piece in folded:
                break
        else:
            return False
    return True


def _is_stuffed(text: str) -> bool:
    """Whether invisible characters carry something, or turn the reading direction around."""
    return (
        len(_STUFFING.findall(text)) >= INVISIBLE_MIN
        or len(_TAGS.findall(text)) >= TAGS_MIN
        or _OVERRIDE.search(text) is not None
    )


def _hides_orders(folded: str) -> bool:
    """Whether text that is not shown gives orders. What hides and says nothing is a mere comment."""
    if "<" not in folded and "]:" not in folded:
        return False
    for match in _HIDDEN.finditer(folded):
        hidden = match["a"] or match["b"] or match["c"] or ""
        if _HIDDEN_ORDER.search(hidden):
            return True
    return False
