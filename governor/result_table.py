"""How the results of tools say that a call failed, found nothing or goes on: data, and no code.

`governor.results` reads it; `python -m benchmarks.failures` measures it. A row is a place to look, a regular
expression and where the wording comes from. Expressions ignore case and are verbose (a space is written as
`\\ `). They see a bounded part of a text, and none repeats without bound what repeats without bound: no text
takes long.

A row must be a failure's wording wherever it stands at the beginning of a result: a page *about* time-outs
begins with that word as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Place(StrEnum):
    """Where a row is looked for.

    START: the beginning of the text. LAST: the beginning of the last line. SHORT: anywhere in a text that is
    no longer than a sentence or two. WHOLE: all of such a text. TITLE: a title or heading of an HTML page.
    """

    START = "start"
    LAST = "last"
    SHORT = "short"
    WHOLE = "whole"
    TITLE = "title"


@dataclass(frozen=True, slots=True)
class Row:
    """One wording, and the programs whose it is."""

    place: Place
    pattern: str
    source: str


_STATUS: Final = r"""
    (?: bad\ request | unauthorized | payment\ required | forbidden | not\ found
    | method\ not\ allowed | not\ acceptable | proxy\ authentication\ required | request\ time-?\ ?out
    | conflict | gone | precondition\ failed | (?:request\ entity|payload|content)\ too\ large
    | uri\ too\ long | unsupported\ media\ type | unprocessable\ (?:entity|content) | locked
    | too\ many\ requests | internal\ (?:server\ )?error | not\ implemented | bad\ gateway
    | service\ (?:temporarily\ )?unavailable | gateway\ time-?\ ?out | client\ error | server\ error
    | error )
"""

_STRERROR: Final = r"""
    (?: no\ such\ file\ or\ directory | permission\ denied | operation\ not\ permitted | file\ exists
      | is\ a\ directory | not\ a\ directory | directory\ not\ empty | no\ space\ left\ on\ device
      | read-only\ file\ system | too\ many\ open\ files | file\ name\ too\ long | input/output\ error
      | no\ such\ process | no\ such\ device | invalid\ argument | broken\ pipe | command\ not\ found
      | connection\ (?:refused|reset\ by\ peer|timed\ out) | no\ route\ to\ host | network\ is\ unreachable
      | device\ or\ resource\ busy | resource\ temporarily\ unavailable | cannot\ allocate\ memory
      | temporary\ failure\ in\ name\ resolution | name\ or\ service\ not\ known | exec\ format\ error
      | text\ file\ busy | too\ many\ levels\ of\ symbolic\ links | no\ child\ processes )
"""

_ERRNO: Final = r"""
    (?-i: EACCES | EADDRINUSE | EAGAIN | EAI_AGAIN | EBUSY | ECONNABORTED | ECONNREFUSED | ECONNRESET
        | EEXIST | EHOSTUNREACH | EINVAL | EISDIR | EMFILE | ENETUNREACH | ENOENT | ENOSPC | ENOTDIR
        | ENOTEMPTY | ENOTFOUND | EPERM | EPIPE | EPROTO | ESRCH | ETIMEDOUT )
"""

_NO_LABEL: Final = r"(?! (?:title|subject|name|description|summary|label|topic) : )"
"""Not the name of a field, whose value may be anything."""

FAILURES: Final = (
    # Names of exceptions, and the word itself, with what makes it a report and not a subject.
    Row(
        Place.START,
        r"[^\w{<]* (?:[\w$]+[.:]{1,2}){0,8} \w* (?:error|exception|errors) \s? :"
        r" (?! \s* (?:none|null|nil|false|no|0) \s* $)",
        "exceptions, `Error:`",
    ),
    Row(
        Place.START, r"[^\w{<]* (?-i:(?:\w+\.){0,8} \w* (?:Error|Exception)) \(", "Python: repr of exceptions"
    ),
    Row(
        Place.START,
        r"[^\w{<]* (?:\w+\.){1,8} (?:errors|exceptions|exc|err|errorfactory|error) \. \w+ [:(]",
        "Python: exceptions without that word in their names",
    ),
    Row(
        Place.START,
        r"(?-i:[\w.]* (?:Timeout|Interrupt|DeadlineExceeded|NotFound|Denied|Fault)) \s? (?: : | \((?!\d\)) )",
        "exceptions",
    ),
    Row(
        Place.START,
        r"[^\w{<]* (?!(?:the|an?|no|any|\d+|title|with|of)\b) \w+ (?:\ (?!(?:the|an?|of|in|about)\b)\w+)?"
        r" \ (?:error|failure|exception) (?:\ -?\d+)? \s? :",
        "`Tool error:`, `psql: error:`, `MCP error -32602:`",
    ),
    Row(
        Place.START,
        r"""
            [^\w{<]* error \ (?: (?:execut|call|invok|runn|fetch|read|writ|process|access|perform|pars
            |search|load|connect|gett|creat|send|retriev|open|query|occurr|download|connecting)\w*
            | when\b | while\b | from\b | code\b | during\b | in\ tool\b | \d+\b | - )
        """,
        "`Error executing tool`, `Error from server`",
    ),
    Row(Place.START, r"\[? \s? error \s? \] ", "logs as results"),
    Row(Place.START, r"error \[? [A-Z]+ \d+ \]? \b", "compilers"),
    Row(
        Place.START,
        r"(?:npm|pip|yarn|cargo|make|go|java) (?: \ err!? \ | \ error \ | :\ \*\*\* )",
        "package managers",
    ),
    Row(
        Place.START,
        r"[\w./\\-]{1,80} (?: :\d+ (?:, \d+ | :\d+)? | \( \d+ ,\d+ \) ) : \ (?:fatal\ )? error \b",
        "compilers",
    ),
    Row(
        Place.START,
        r"""
            (?:an?|the\ following|encountered\ an?) \ (?:\w+\ ){0,2} (?:error|exception) \ (?:occur
            |was\ |when|while|has)
        """,
        "`An error occurred`",
    ),
    Row(Place.START, r"(?:i\ )? encountered \ (?:an\ )? error", "CrewAI, LlamaIndex"),
    Row(Place.START, r"there\ was\ an\ error", "n8n"),
    Row(Place.START, r"the\ tool\ (?:execution|call)\ failed", "Cline"),
    Row(Place.START, r"\d+ \ validation \ errors? \b", "pydantic"),
    Row(Place.START, r"<tool_use_error>", "Claude Code"),
    Row(Place.START, r"(?:oops|sorry) [,!] ", "assistants' tools"),
    Row(Place.START, r"(?:fatal|panic|fail|failure|critical|abort(?:ed)?) : ", "git, Go"),
    Row(Place.START, r"[\w-]+ : \ (?:fatal|error) : ", "compilers, psql"),
    Row(Place.START, r"thread\ '[^']*'\ panicked", "Rust"),
    Row(Place.START, r"exception\ in\ thread\ ", "Java"),
    Row(
        Place.START,
        r"""
            (?:msg\ \d+,\ level\ \d+ | ora-\d+: | error\ \d+\ \(\w+\) | wrongtype\ | loading\ redis
            | \(error\)\ )
        """,
        "databases",
    ),
    Row(Place.START, r"(?:segmentation\ fault | killed | aborted | bus\ error) \s* (?:\(|$)", "shells"),
    Row(Place.START, r"e\d{4}\ [\d:.]+ .{0,40} \]\ ", "klog (kubectl)"),
    Row(Place.START, r"npm\ err", "npm"),
    Row(Place.SHORT, r"\A usage:\ ", "command lines that were not understood"),
    Row(
        Place.START,
        r"""
            message:\ (?:no\ such\ element|timeout|stale\ element|element\ |invalid\ |unknown\ 
            |session\ |javascript\ error)
        """,
        "Selenium",
    ),
    Row(Place.START, r"traceback\ \(most\ recent\ call\ last\)", "Python"),
    Row(Place.START, r"-{10,} \s* \w+ \s+ traceback\ \(", "Jupyter"),
    Row(Place.START, r"node:internal/", "Node"),
    Row(Place.LAST, r"[\w.]*\w (?:error|exception) (?: :\ | $ )", "Python: the end of a traceback"),
    Row(Place.LAST, r"FAILED\ \(\w+=\d+", "unittest"),
    Row(Place.LAST, r"automatic\ merge\ failed", "git"),
    Row(Place.LAST, r"[\w./-]{1,80} : \ (?:fatal\ )?error : ", "linkers, compilers"),
    # What command lines say of themselves.
    Row(Place.START, r"e:\ ", "apt"),
    Row(Place.LAST, r"e:\ ", "apt"),
    Row(
        Place.START,
        r"""
            (?:unknown|invalid|unrecognized|unsupported|missing|illegal|bad|unexpected|ambiguous) \ (?:\w+\ )?
            (?:command|subcommand|option|options|argument|arguments|flag|operation|parameter|switch|operand)\b
        """,
        "command lines",
    ),
    Row(
        Place.START,
        r"""
            (?:[\w./-]{1,40}: \ ){1,3} .{0,80}? (?: requires\ (?:at\ least\ )?\d+ | bad\ option | is\ unknown
            | unterminated | unknown\ (?:suffix|option|command|flag|user|host|shorthand)
            | invalid\ (?:option|number|argument|operation|command|date|user|mode|reference) | unrecognized
            | missing\ operand | not\ something | undefined\ reference | no\ input\ files
            | not\ in\ gzip\ format | can(?:not|'t)\ )
        """,
        "command lines",
    ),
    # "cannot ..." in its forms.
    Row(
        Place.START,
        r"(?:[\w./'()-]{1,40}:?\ ){0,2} (?:failed|unable) \ (?:to|with|for|due) \b",
        "`Failed to`, `Unable to`",
    ),
    Row(
        Place.START,
        r"""
            (?:request|call|command|execution|tool|operation|query|connection|login|authentication
            |upload|download|navigation|search|build|job|transaction|validation|verification
            |tool\ (?:execution|invocation)
            |automatic\ merge|(?:\w+\ )?tool\ call) \ (?:has\ )? (?:failed|timed\ out|was\ aborted
            |was\ cancell?ed) \b
        """,
        "`Request failed with status code`",
    ),
    Row(
        Place.START,
        r"""
            (?:sorry,? \ )? (?:we\ |i\ |you\ )? (?:could\ not|couldn't|cannot|can't|can\ not
            |were\ unable\ to) \ (?!be\b) \w+
        """,
        "`Could not find`, `Cannot GET`",
    ),
    Row(
        Place.START,
        _NO_LABEL + r"(?:[\w.@/-]+: \ ){1,3} .{0,160} (?:: \ )? " + _STRERROR,
        "shells, coreutils",
    ),
    Row(
        Place.LAST,
        _NO_LABEL + r"[\w.@/-]+: \ .{0,200} " + _STRERROR + r" \W* $",
        "shells, coreutils, after some output",
    ),
    Row(Place.START, r"(?:\[errno\ -?\d+\] | (?-i:E[A-Z0-9]{3,14}): \ )", "errno in Python and Node"),
    Row(Place.START, _ERRNO + r" \s* (?: \Z | [:(,] )", "errno alone"),
    Row(
        Place.START,
        r"(?:connect|read|write|send|bind|listen|open|spawn|getaddrinfo|request) \ (?:\S{1,200}\ )?"
        + _ERRNO
        + r" \b (?! \ (?:is|are|was|means|errors?|happens|occurs|and|or|for)\b )",
        "errno in Node, libuv",
    ),
    Row(
        Place.START,
        r"""
            (?: dial\ (?:tcp|udp|unix)\d?\b
              | (?:get|post|put|patch|delete|head|options)\ "https?://[^"]{1,400}":\  )
        """,
        "Go",
    ),
    Row(Place.START, r"sqlstate\[\w{2,8}\]", "PDO"),
    Row(Place.START, r"status:\ [45]\d\d (?: \s* $ | \W+ " + _STATUS + r" )", "HTTP clients"),
    Row(Place.WHOLE, r"oom-?\ ?killed", "Kubernetes"),
    Row(
        Place.WHOLE,
        r"""
            (?:the|this|your) \ (?:request|operation|call|command|query|connection|upload|download)
            \ (?:has\ )? (?:failed|timed\ out|was\ (?:aborted|cancell?ed))
        """,
        "DOMException",
    ),
    Row(Place.START, _STRERROR + r" \s* (?: [:(] | $ )", "strerror alone"),
    Row(
        Place.START,
        r"""
            (?:cat|ls|cp|mv|rm|cd|sed|grep|tar|find|head|tail|awk|chmod|mkdir|bash|sh|zsh|python3?|node
            |curl|wget|git|jq|make|dd|kill) : \ (?:\(\d+\)\ | line\ \d+: | cannot\ | can't\ | missing\ 
            | invalid\ | illegal\ | unknown\ | unrecognized\ | \*\*\*\ | -c:\ | \w+:\ )
        """,
        "coreutils, shells",
    ),
    Row(Place.START, r"curl:\ \(\d+\)", "curl"),
    Row(Place.START, r"'.{1,60}'\ is\ not\ (?:recognized\ as|a\ \w+\ command)", "cmd.exe"),
    Row(Place.START, r"warning:\ package\(s\)\ not\ found", "pip"),
    # What HTTP says.
    Row(Place.START, r"http (?:/\d(?:\.\d)?)? \ (?:status|error|code)? :? \s* [45]\d\d \b", "HTTP"),
    Row(Place.START, r"(?:error|status) \ code: \ [1345]\d\d\d? \b", "Cloudflare, openai-python"),
    Row(
        Place.SHORT,
        r"^ (?:error:?\ )? [45]\d\d (?:,\ |\ |:\ |-\ ) " + _STATUS + r" (?:\W | $)",
        "HTTP clients",
    ),
    Row(Place.SHORT, r"(?:status\ code|http(?:\ error)?|status|error)\ :?[45]\d\d \b", "HTTP clients"),
    Row(Place.SHORT, r"invalid\ status\ '", "azure-core"),
    Row(
        Place.TITLE,
        r"(?: ^ | \| \s* | http\ status\ | error\ ) [45]\d\d \b (?: \s* [:|-]? \s* " + _STATUS + r" | $ )",
        "pages of servers",
    ),
    Row(Place.TITLE, r"^ " + _STATUS + r" (?: \ \(\d\d\d\) )? $", "pages of servers"),
    Row(
        Place.TITLE,
        r"""
            ^ (?: error\ response | access\ denied | just\ a\ moment\W* | attention\ required!?.*
            | connection\ timed\ out | the\ request\ could\ not\ be\ satisfied | server\ error\ \(500\)
            | service\ temporarily\ unavailable | page\ not\ found ) $
        """,
        "Python, Akamai, Cloudflare, CloudFront, Django",
    ),
    Row(Place.SHORT, r"<pre>\s*cannot\ (?:get|post|put|delete|patch)\ /", "Express"),
    Row(Place.START, r"(?:upstream\ connect\ error | no\ healthy\ upstream)", "Envoy"),
    Row(Place.START, r"<\?xml [^>]{0,80} > \s* <error>", "AWS, Azure Storage"),
    Row(Place.START, r"<error> \s* <code>", "AWS, Azure Storage"),
    Row(Place.START, r"<errorresponse\b", "AWS"),
    # A refusal or a complaint that is all of the text.
    Row(
        Place.SHORT,
        r"""
            (?: ^ .{1,200} \b (?:not\ found | does\ not\ exist | doesn't\ exist | not\ exist
            | already\ exists | is\ required | are\ required | is\ missing | is\ invalid
            | is\ not\ (?:valid|allowed|available|supported|a\ valid) | not\ authorized
            | not\ permitted | not\ supported | not\ allowed | has\ expired | was\ rejected
            | was\ denied | is\ locked | access\ denied | permission\ denied) \b .{0,60} $ )
        """,
        "refusals in general",
    ),
    Row(
        Place.START,
        r"no\ (?: such\ \w+ | api\ key | .{1,40}\ with\ (?:that|this|given) | open\ pages )",
        "SQLite, Kong, pydantic-ai",
    ),
    Row(
        Place.SHORT,
        r"""
            ^ (?:unauthorized|forbidden|access\ denied|permission\ denied|not\ found|bad\ request
            |unauthenticated|internal\ (?:server\ )?error|bad\ credentials|network\ error
            |not\ authorized|overloaded) (?: [.!:] | \ - | $ )
        """,
        "refusals in general",
    ),
    Row(
        Place.SHORT,
        r"""
            ^ (?:invalid|missing|unknown|incorrect|malformed|unsupported|illegal|bad|expired
            |insufficient) \ .{0,80} (?:key|token|credentials?|password|argument|arguments|parameter
            |parameters|request|response|input|value|tool|function|command|method|option|url|uri|path
            |format|json|query|column|table|funds|permissions?|privileges?|call|scope
            |syntax) \b .{0,80} $
        """,
        "refusals in general",
    ),
    Row(
        Place.SHORT,
        r"\b (?:do(?:es)?\ not|don't|doesn't) \ have \ (?:\w+\ ){0,2} (?:permission|access) \b",
        "refusals in general",
    ),
    Row(
        Place.SHORT,
        r"""
            \b (?:fix\ the\ errors?\ and\ try\ again | please\ fix\ your\ mistakes
            | is\ not\ a\ valid\ tool | not\ an\ available\ function | unavailable\ tool)
        """,
        "frameworks",
    ),
    Row(
        Place.LAST,
        r"(?:fix\ the\ errors?\ and\ try\ again | please\ fix\ your\ mistakes)",
        "pydantic-ai, LangGraph",
    ),
    Row(
        Place.START,
        r"the\ user\ (?:doesn't\ want\ to\ proceed|denied|rejected|cancelled|canceled)",
        "Claude Code, Cline",
    ),
    Row(
        Place.SHORT,
        r"\b (?:rejected|denied|cancell?ed|aborted|interrupted) \ by \ (?:the\ )? user \b",
        "agents",
    ),
    Row(
        Place.SHORT,
        r"""
            \b (?:was\ not\ executed|were\ not\ executed|no\ replacement\ was\ performed
            |verification\ failed) \b
        """,
        "agents",
    ),
    Row(Place.START, r"no\ replacement\ was\ performed", "editors"),
    Row(Place.START, r"your\ proposed\ edit\ has\ introduced", "SWE-agent"),
    Row(Place.START, r"(?:apply_patch|patch)\ verification\ failed", "Codex"),
    Row(
        Place.START,
        r"""
            (?:element|ref|selector|index|target|page|tab|session|file|path|the\ path|tool|function|user
            |order|key|module|package|table|relation|column) \b .{0,120} \ (?:not\ found
            | does\ not\ exist | doesn't\ exist | closed)\b
        """,
        "tools in general",
    ),
    Row(
        Place.SHORT,
        r"""
            \b (?:database\ is\ locked | syntax\ error\ at | near\ \".*\":\ syntax\ error
            | violates\ \w+(?:\ \w+)?\ constraint | constraint\ failed | duplicate\ (?:key|entry)
            | ambiguous\ column | wrong\ number\ of)
        """,
        "databases",
    ),
    Row(
        Place.START,
        r"""
            (?:duplicate\ (?:key|entry) | relation\ \" | column\ \" | canceling\ statement | deadlock\ 
            | lock\ wait | lost\ connection | too\ many\ connections | terminating\ connection
            | division\ by\ zero | syntax\ error | near\ \" )
        """,
        "databases",
    ),
    Row(
        Place.SHORT,
        r"""
            \b (?:unexpected\ token | is\ not\ valid\ json | expecting\ value | unexpected\ end\ of
            | is\ not\ defined\ ?\W*$ | is\ not\ a\ function | unexpected\ mimetype | no\ connection\ adapters
            | unsupported\ protocol | invalid\ url)
        """,
        "parsers and interpreters",
    ),
    Row(
        Place.START,
        r"(?:<anonymous_script>|\[eval\]|file:///\S+|/\S+\.(?:c|m)?js):\d+ \s",
        "Node: an uncaught exception",
    ),
    Row(Place.SHORT, r"\b (?:exceed(?:s|ed|ing)?) \ (?:\w+\ ){0,3} (?:quota|limit|usage|rate)", "limits"),
    Row(
        Place.SHORT,
        r"""
            \b (?:quota\ exceeded | limit\ exceeded | limit\ reached | rate[\ -]?limit(?:ed|\ exceeded
            |\ reached|\ hit)| ratelimit(?:ed)?\b | run\ out\ of | not\ enough\ (?:credits|balance)
            | insufficient\ (?:funds|quota|balance|credits)| excessive\ requests | call\ frequency
            | too\ many\ requests)
        """,
        "limits",
    ),
    Row(
        Place.SHORT,
        r"\b (?:have\ been\ blocked | is\ not\ allowed | unable\ to\ access)",
        "robots.txt, firewalls",
    ),
    Row(Place.START, r"the\ sites?\ robots\.txt", "MCP server-fetch"),
    # What passes by itself: see TRANSIENT as well.
    Row(
        Place.SHORT,
        r"\b (?:timed\ out\b | time-?out \ (?:of\ )? \d | time-?out\ exceeded | deadline\ exceeded )",
        "time-outs",
    ),
    Row(Place.SHORT, r"(?:^|\w\ ) time-?out \W* $", "time-outs"),
    Row(
        Place.SHORT,
        r"""
            \b (?:connection|socket|stream|server) \ (?:was\ |has\ |is\ )? (?:refused | reset | aborted
            | closed | lost | disconnected | broken | hung\ up | error ) \b (?! \ ?: \ the )
        """,
        "lost connections",
    ),
    Row(
        Place.SHORT,
        r"""
            \b (?:fetch\ failed | empty\ reply | network\ error | max\ retries\ exceeded
            | all\ connection\ attempts\ failed | failed\ to\ (?:connect|fetch) | cannot\ connect
            | could\ not\ connect | name\ resolution | server\ disconnected)
        """,
        "lost connections",
    ),
    Row(
        Place.SHORT,
        r"\b (?:temporarily|currently|is) \ (?:\w+\ )? (?:unavailable|overloaded|busy|down\b) ",
        "services",
    ),
    Row(
        Place.SHORT,
        r"\b (?:service|backend|server|resource|model) \ (?:temporarily\ )? (?:unavailable|overloaded) \W* $",
        "services",
    ),
    Row(Place.START, r"httpconnectionpool\(", "urllib3"),
)
"""A result is a failure if one of these fits."""

QUOTES: Final = (
    r"\W{0,3} \d{4}-\d\d-\d\d [t\ ] \d\d: | \W{0,3} \d\d?/ (?:\d\d|\w{3}) /\d{4}",
    r"[\w./-]+ :\d+: (?! \d)",
    r"(?-i:[a-z_$][\w$.]*) \(",
    r"(?: [-*#>] | \d+[.)] ) \s | title: | \[? (?:info|debug|warning|warn|notice) \b",
)
"""What begins like this quotes: a log, what `grep` found, a list, a heading. SHORT and WHOLE do not apply."""

TRANSIENT: Final = (
    r"time(?:d\ |-)?out | deadline\ ?exceeded | request\ time-?out",
    r"""
        temporar | unavailable (?! \ tool) | overloaded | server\ ?(?:is\ )?busy | try\ again\ later
        | retry\ (?:after|later|in) | try\ again\ in
    """,
    r"""
        rate[\ _-]?limit | ratelimit | too\ many\ (?:requests|connections) | too_many | slow\ ?down
        | throttl | rate\ exceeded | excessive\ requests | call\ frequency | per\ minute
        | over_query_limit | resource_?\ ?exhausted | throughput \w* \ ?exceeded | throughputexceeded
    """,
    r"""
        connect(?:ion)?\ (?:was\ |has\ been\ )?(?:refused|reset|aborted|closed|lost|error|broken|timed)
        | connectionerror | disconnect | closed\ the\ connection | fetch\ failed | network\ error
        | max\ retries | (?:failed\ to|unable\ to|could\ not|cannot)\ connect | hung\ up | empty\ reply
        | lost\ connection | other\ side\ closed | e(?:connrefused|connreset|timedout|ai_again
        |hostunreach|pipe|busy|again) | err_(?:connection|timed|network) | name\ resolution
        | no\ route\ to\ host | unreachable | no\ healthy
    """,
    r"""
        gateway | internal\ (?:server\ )?error | internal_?error | server\ error | backend\ error
        | (?<!line\ ) (?<![\d.:,]) \b (?:408|425|429|5\d\d) \b (?![.:]\d) (?!\ ?ms|\ ?milli|\ bytes)
    """,
    r"""
        deadlock | lock\ (?:wait\ )?time | is\ locked | restarting\ transaction | resource\ busy
        | loading\ the\ dataset | \boom\ command
    """,
)
"""A failure is a transient one if one of these is found at its beginning: another try is worth it."""

PERMANENT: Final = (
    r"insufficient_quota | current\ quota | plan's | out\ of\ searches | check\ your\ plan | robots\.txt",
)
"""What speaks of a limit, and does not pass by itself."""

EMPTY: Final = (
    Row(
        Place.WHOLE,
        r"""
            (?:sorry,?\ )? (?:there\ (?:are|were)\ )? (?:found\ )? (?:no|0
            |zero) \ (?:\w+\ ){0,4}? (?:results?|match(?:es)?|files?|documents?|records?|data|rows?
            |items?|entries|resources|hits|output|messages|events|pages|content) \b (?:\ (?:was|were|is
            |are)\ found | \ found | \ available | \ returned | \ exist )? (?: \ (?:for|in|with|from
            |matching|of)\b .* )? [.!]?
        """,
        "search tools, LangChain, kubectl, editors",
    ),
    Row(Place.WHOLE, r"found \ (?:0|no) \ .{1,60}", "search tools"),
    Row(
        Place.WHOLE,
        r"""
            empty\ set\ .{0,20} | \(?nil\)? | \(empty\ \w+(?:\ or\ \w+)?\) | \(?(?:no\ output|empty)\)?
            | none | null | undefined | \"\" | '' | n/a
        """,
        "databases, interpreters",
    ),
    Row(Place.WHOLE, r"(?:<\w+>)? tool\ ran\ without\ output .{0,40}", "Claude"),
    Row(
        Place.WHOLE,
        r"""
            .{0,60} \b (?:did\ not\ (?:match\ any|produce\ any|return\ any) | returned\ (?:no|0)\ 
            | hasn't\ returned\ any | have\ no\ results ) .{0,60}
        """,
        "search pages, SWE-agent",
    ),
    Row(Place.LAST, r"\(0\ rows\)", "psql"),
    Row(Place.START, r"empty\ dataframe\b", "pandas"),
)
"""The tool worked and found nothing."""

UNFINISHED: Final = (
    Row(
        Place.WHOLE,
        r"""
            (?:(?:status|state)\W{1,3})? (?:pending|queued|running|in[\ _-]?progress|processing|waiting
            |starting|not\ ready(?:\ yet)?|scheduled|working) \W*
        """,
        "jobs",
    ),
    Row(
        Place.WHOLE,
        r"""
            (?:the\ )? (?:job|task|run|build|process|command|operation|script|export|import|request
            |query|report|deployment)\b .{0,60} \b (?:is|are)? \ ?(?:still|currently) \ (?:running
            |processing|pending|queued|in\ progress|being) .{0,60}
        """,
        "jobs",
    ),
    Row(Place.WHOLE, r"still \ (?:running|processing|working|waiting|pending) .{0,60}", "jobs"),
    Row(Place.WHOLE, r"(?:script|process|command)\ running\ with\ session\ id\ .{1,40}", "Codex"),
    Row(
        Place.WHOLE,
        r".{0,60} \b (?:not\ (?:yet\ )?(?:ready|finished|complete|completed|done)(?:\ yet)?) \W* ",
        "jobs",
    ),
    Row(Place.START, r"<status> \s* (?:running|pending|queued)", "Claude Code"),
)
"""The work goes on: the same question will have another answer."""

UNFINISHED_STATES: Final = frozenset({
    "pending", "queued", "running", "in_progress", "inprogress", "processing", "starting", "waiting",
    "scheduled", "creating", "updating", "deleting", "provisioning", "initializing", "initialising",
    "not_started", "submitted", "accepted", "building", "deploying", "started",
})  # fmt: skip
"""Values of a status field that say so."""

UNFINISHED_LONGEST: Final = 8
"""A status report has few fields; an object with more is a fact that happens to have a status."""

# Fields of JSON objects. A dot goes into an object.

ERROR_FIELDS: Final = (
    "error", "Error", "err", "exception", "fault", "errorMessage", "error_message", "errorMessages",
    "Error Message", "error_msg", "error_description", "errorCode", "error_code", "errorType",
    "error_type", "faultstring", "detail.error", "root_cause", "__type",
)  # fmt: skip
"""Failed if one of these says something."""

ERROR_LISTS: Final = ("errors", "Errors")
"""Failed if one of these has something in it and DATA_FIELDS have nothing: beside data they are remarks."""

DATA_FIELDS: Final = ("data", "result", "results", "items")

FLAGS: Final = {
    "is_error": True,
    "isError": True,
    "success": False,
    "ok": False,
    "succeeded": False,
    "Success": False,
}
"""Failed if a field has this value."""

ERROR_WORDS: Final = {
    "status": (
        "error",
        "failure",
        "request_denied",
        "over_query_limit",
        "invalid_request",
        "not_found",
        "unknown_error",
    ),
    "type": ("error", "error-text", "error-json", "errorresponse"),
    "object": ("error",),
    "outcome": ("error",),
    "result": ("error",),
    "code": (
        "eacces", "eai_again", "econnaborted", "econnrefused", "econnreset", "ehostunreach", "enetunreach",
        "enoent", "enotfound", "eperm", "epipe", "etimedout",
    ),
    "success": ("false",),
    "ok": ("false",),
    "is_error": ("true",),
    "isError": ("true",),
}  # fmt: skip
"""Failed if a field is one of these words."""

STATUS_FIELDS: Final = (
    "status", "status_code", "statusCode", "httpStatus", "http_status", "httpStatusCode",
)  # fmt: skip
"""Failed if one of these is an HTTP status of 400 and above."""

CODE_FIELDS: Final = ("code", "cod")
"""The same of one of these, beside a message: alone it may be the code of anything."""

EXIT_FIELDS: Final = (
    "exit_code", "exitCode", "returncode", "return_code", "exit_status", "metadata.exit_code", "ExitCode",
    "code.exit",
)  # fmt: skip
"""Whether a command failed; 0 settles it, whatever the command wrote."""

OUTPUT_FIELDS: Final = ("output", "stdout", "result", "aggregated_output")
"""What a command wrote."""

MESSAGE_FIELDS: Final = (
    "message", "detail", "msg", "title", "error", "Note", "Information", "description", "reason",
    "status_message",
)  # fmt: skip
"""An object with nothing beside one of these and REPORT_FIELDS is a report, and read like a text."""

REPORT_FIELDS: Final = frozenset({
    "code", "status", "statusCode", "status_code", "documentation_url", "details", "hint", "type",
    "errors", "request_id", "requestId", "path", "timestamp", "url", "trace_id", "instance",
    "retry_after", "name", "syscall", "errno", "stack", "kind", "success", "ok",
})  # fmt: skip

NODE_ERROR: Final = frozenset({"errno", "syscall"})
"""An object with both is an error of Node."""

VALIDATION: Final = frozenset({"loc", "msg", "type"})
"""An item of pydantic's errors has these."""

COLLECTIONS: Final = (
    "results", "result", "items", "data", "rows", "hits.hits", "matches", "documents", "records",
    "entries", "list", "organic_results", "values", "messages", "events", "files", "resources",
    "web.results",
)  # fmt: skip
"""Empty if one of these is, and no other of them has anything in it."""

EMPTY_WORDS: Final = {"status": ("zero_results",), "status_message": ("no search results.",)}
"""Empty if a field is one of these words."""

STATE_FIELDS: Final = (
    "status", "state", "State", "Status", "phase", "job_status", "QueryExecution.Status.State",
    "properties.provisioningState", "search_metadata.status", "job.status", "data.status", "task.status",
    "run.status",
)  # fmt: skip
"""Where a status report has its status."""

UNFINISHED_FLAGS: Final = {
    "done": False,
    "finished": False,
    "is_complete": False,
    "isComplete": False,
    "ready": False,
}

# What wraps the text of a result.

EXIT_LINES: Final = (
    r"\A \s* exit \ code :? \ (-?\d+) \s* (?:\n|\Z)",
    r"\A \s* exitcode: \ (-?\d+) \ \(",
    r"\A (?:chunk\ id:[^\n]*\n)? wall\ time:[^\n]*\n process\ exited\ with\ code\ (-?\d+)",
    r"\A \s* <(?:returncode|exit_code)> (-?\d+) </",
    r"\n \[command\ finished\ with\ exit\ code\ (-?\d+)\] \s* \Z",
    r"\n \[the\ command\ completed\ with\ exit\ code\ (-?\d+)[.\s]",
    r"\n exit\ code: \ (-?\d+) (?: \n (?:signal|background\ pids|process\ group\ pgid): [^\n]* ){0,3} \s* \Z",
)
"""A command's exit code in the words of those who ran it: Claude Code and Codex, AutoGen, Codex,
mini-SWE-agent, OpenHands (two), Gemini CLI. They stand at the edge of the text."""

QUIET: Final = (
    r"\A \s* exit\ code:?\ 0 \s* (?: wall\ time:[^\n]*\n )? (?: output: )? \s* \Z",
    r"""
        \A (?:chunk\ id:[^\n]*\n)? wall\ time:[^\n]*\n process\ exited\ with\ code\ 0\n
        (?:original\ token\ count:[^\n]*\n)? output: \s* \Z
    """,
    r"\A \s* <returncode>0</returncode> \s* <output> \s* </output> \s* \Z",
    r"\n (?:output|stdout):\ \(empty\)\n",
    r"\A \s* \[the\ command\ completed\ with\ exit\ code\ 0[.\s]",
)
"""An exit code of 0 without any output."""

CLEARED: Final = (
    r"""
        [\[<(*]{1,3} .{0,40} \b (?:results?|outputs?|contents?|messages?|text) \b .{0,30}
        \b (?:cleared|omitted|removed|truncated|elided|pruned|compacted|hidden)\b
    """,
    r"""
        .{0,60} \b (?:results?|outputs?|contents?) \b .{0,20} \b (?:has|have|was|were) \ (?:been\ )?
        (?:cleared|omitted|removed|truncated|elided|pruned|compacted|hidden)\b
    """,
)
"""What clients put in the place of old results, to save tokens: no answer of a tool."""

NOISE_FIELDS: Final = frozenset({
    "response_time", "responseTime", "took", "took_ms", "duration", "duration_ms", "duration_seconds",
    "elapsed", "elapsed_ms", "latency", "latency_ms", "time_taken", "request_id", "requestId", "trace_id",
    "traceId", "timestamp", "fetched_at", "retrieved_at", "generated_at", "cached",
})  # fmt: skip
"""Fields that differ each time, whatever was found."""

NOISE: Final = (
    r"wall\ time: [^\n]*",
    r"chunk\ id: [^\n]*",
    r"\b duration: \ [\d.]+ \ ?m?s",
    r"\b took \ [\d.]+ \ ?m?s \b",
)
"""The same in texts."""
