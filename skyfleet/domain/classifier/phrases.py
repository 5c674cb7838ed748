# ruff: noqa: E501  a pattern is read whole, and breaking one hides what it matches
"""Error texts as data: what a phrase says, for clouds and conditions that have no code.

The phrases of one group are alternatives of one regular expression, matched without regard to case, in a text
whose addresses and advice are gone. They name a structure ("exceeded quota", "no … capacity"), not a sentence, so
that other zones, types and wordings fit. A group holds for the clouds it lists, or for all. Gaps are bounded.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from skyfleet.domain.classifier.verdict import (
    ACCOUNT,
    AUTH,
    CAPACITY,
    CLOUD,
    CONFIG,
    PREEMPTED,
    QUOTA,
    REGION,
    TIMEOUT,
    TRANSIENT,
    ZONE,
    Tier,
    Topic,
    Verdict,
)


class Phrase(NamedTuple):
    """A group of phrases, and what they say. `clouds` empty means every cloud."""

    pattern: re.Pattern[str]
    verdict: Verdict
    tier: int
    clouds: frozenset[str]


def _group(verdict: Verdict, *patterns: str, tier: int = Tier.SPECIFIC, clouds: str = "") -> Phrase:
    joined = "|".join(f"(?:{pattern})" for pattern in patterns)
    return Phrase(re.compile(joined, re.IGNORECASE), verdict, tier, frozenset(clouds.split()))


#: Read first and then taken out of the text, because they use the words of other kinds: a rate limit is "quota
#: exceeded" in Google's words and "limit exceeded" in Amazon's; an expired login "timed out"; and so on.
FIRST: tuple[Phrase, ...] = (
    # Google (Service Infrastructure) counts API calls as quota too: its limit is "per minute", "per 100 seconds".
    _group(
        Verdict(TRANSIENT, None, Topic.RATE_LIMIT),
        r"quota exceeded for quota (?:metric|group) [^\n]{0,160}per (?:minute|second|hour|day|100 seconds)[^\n]{0,160}",
        r"(?:api|request|call|read|write|query|queries)[\w ]{0,20} (?:rate|quota|limit)s? (?:has been |was |is )?exceeded",
        r"exceed\w{0,3} (?:the |your |its |our )?(?:api |request |call )?rate[- ]limits?",
        r"rate[- ]?limit(?:ed|ing|s)?\b(?: has been| was)?(?: exceeded| reached| hit)?",
        r"\bthrottl(?:ed|ing)\b",
        r"too many (?:api )?(?:requests|calls)",
        r"rate exceeded",
        r"\bslow ?down\b",
        r"requests? (?:quota|limit) (?:has been )?exceeded",
    ),
    # A service that "is unavailable" is no machine that is unavailable.
    _group(
        Verdict(TRANSIENT),
        r"(?:service|server|api|endpoint|system|platform|controller)s? (?:is|are|was|were) (?:\w+ )?(?:unavailable|not available|down|overloaded|busy)",
        r"service (?:temporarily )?unavailable|insufficient capacity to handle",
    ),
    # Organisation and admission policies: refused by a person's rule. First, for they quote what they forbid.
    _group(
        Verdict(AUTH, REGION, Topic.POLICY),
        r"disallowed by (?:azure|policy)[^\n]{0,300}(?:allowed|permitted)[ _-]?(?:resource )?(?:locations?|regions?)",
        r"constraints/gcp\.resourcelocations",
        clouds="azure gcp",
    ),
    _group(
        Verdict(AUTH, CLOUD, Topic.POLICY),
        r"constraint '?constraints/[\w.]{1,80}'? violated",
        r"(?:disallowed|denied|blocked|prohibited|violates?|rejected) by (?:\w+ )?(?:an? )?(?:organi[sz]ation(?:al)? |admin |org )?polic(?:y|ies)",
        r"violates? (?:an? )?(?:organi[sz]ation(?:al)?|org) polic(?:y|ies)",
    ),
    _group(
        Verdict(CONFIG, CLOUD, Topic.POLICY),
        r"admission webhook \S{1,120} denied the request",
        r"violates podsecurity",
        r"is forbidden: failed quota: [^\n]{1,120}must specify",
        r"is forbidden: (?:maximum|minimum) [\w./-]{1,40} (?:usage|limit|limits)",
        clouds="kubernetes ssh",
    ),
)

PHRASES: tuple[Phrase, ...] = (
    # --- credentials and accounts -------------------------------------------------------------------------
    _group(
        Verdict(AUTH, None, Topic.BILLING),
        r"billing (?:account )?(?:\w+ ){0,3}(?:to be enabled|(?:is |been )?(?:disabled|not (?:\w+ )?(?:enabled|active|found)|closed))",
        r"(?:enable|requires?) billing",
        r"payment (?:method )?(?:is )?(?:required|declined|failed|missing|invalid|past due)|no (?:valid )?payment method|add a payment method",
        r"(?:insufficient|not enough|lacks?|low on|out of|no|enough) (?:account )?(?:credits?|funds|balance|money)\b",
        r"(?:balance|credits?|funds) (?:is|are) (?:too low|insufficient|not (?:enough|sufficient)|exhausted|negative|depleted|below)",
        r"(?:account|subscription|project|tenancy|organi[sz]ation|user) (?:'?[\w.-]{1,64}'? )?(?:is |has been |was |is currently )(?:inactive|suspended|disabled|blocked|locked|deactivated|not active|closed|delinquent|restricted|past due)",
        r"spending limit",
        r"unpaid (?:invoice|balance)",
    ),
    _group(
        Verdict(AUTH, None, Topic.PERMISSION),
        r"(?:not|n't) (?:authorized|allowed|permitted|entitled) to (?:perform|access|use|launch|create|call|act|run|deploy)",
        r"(?:do|does) ?n[o']t have (?:sufficient |the |enough |required |necessary )?(?:authorization|permissions?|privileges|access|rights)",
        r"required '?[\w.]{3,80}'? permission",
        r"permission '?[\w.]{3,80}'? (?:denied|is required|required)",
        r"(?:missing|lacks?|insufficient|required?) (?:the )?(?:required |necessary |following |authentication )?(?:permissions?|privileges?|scopes|role)\b",
        r"policy update access denied",
        r"cannot (?:get|list|watch|create|delete|patch|update) resource",
        r"user's group not permitted",
        r"invalid account or account/partition combination",
        r"(?:invalid|unknown) (?:account|qos) (?:specification|specified|name)?|invalid qos",
        r"access/permission denied",
        r"user not found on host",
        r"permission to perform this operation was denied",
    ),
    _group(
        Verdict(AUTH),
        r"unable to locate (?:your )?credentials|failed to (?:retrieve|acquire|get|refresh) (?:a |an |the )?(?:\w+ )?token",
        r"(?:no|missing|could not (?:find|load|automatically determine)|unable to (?:load|find|determine|detect)|failed to (?:get|load|retrieve|find|refresh|obtain|acquire)|not find) (?:\w+ ){0,3}credentials?\b",
        r"credentials? (?:\w+ ){0,4}(?:invalid|expired|revoked|missing|incorrect|wrong|not (?:set|found|valid|configured|available))",
        r"(?:invalid|expired|bad|wrong|incorrect|missing|revoked|unknown|no|unrecognized|malformed|unauthori[sz]ed) (?:\w+ )?(?:api[ _-]?key|api[ _-]?token|access[ _-]?key|access[ _-]?token|bearer token|auth(?:entication|orization)?[ _-]?token|security token|client secret|credentials?|login|password|authentication credentials?)",
        r"(?:api[ _-]?key|api[ _-]?token|access token|security token|id token|refresh token|session token|\btoken|client secret|secret keys?|\bkey)(?: \w+){0,6} (?:is |was |has |are |been |not |have )+(?:invalid|expired|revoked|disabled|missing|required|incorrect|not valid|found|recogni[sz]ed|deleted|be found)",
        r"(?:invalid|expired) (?:\w+ )?token\b",
        r"check your api key",
        r"not able to validate the provided access credentials|asked for the client to provide credentials",
        r"authentication (?:has )?(?:failed|required|error|failure|is required)",
        r"failed to authenticate|unable to authenticate|could not authenticate|cannot authenticate",
        r"not (?:logged|signed) in|must (?:be logged|log|sign) in|(?:run|use) [`'\"]?(?:az|gcloud auth|aws sso|oci session|ibmcloud) (?:login|application-default|authenticate)",
        r"\baadsts\d{4,9}",
        r"invalid_grant|invalid_client|invalid_rapt",
        r"sso session\b[^\n]{0,100}(?:expired|invalid)",
        r"config profile \([^)\n]{1,100}\) could not be found",
        r"request (?:signature )?(?:we calculated )?does not match|signature (?:has )?expired",
        r"reauthentication (?:is )?(?:needed|required|failed)",
        r"api has not been used in project|it is disabled\. enable it",
        r"incorrect user ?name or password",
        r"munge (?:decode|encode) (?:failed|error)|invalid munge|protocol authentication error|invalid authentication credential",
        r"permission denied \((?:publickey|password|keyboard-interactive|gssapi)[^)\n]{0,80}\)|too many authentication failures",
        r"getting credentials: exec|gke-gcloud-auth-plugin",
        r"provided api key could not be found",
        r"(?:401|error|http) unauthori[sz]ed\b",
        r"user identity\b[^\n]{0,60}(?:invalid|failed|mismatch)",
    ),
    _group(
        Verdict(AUTH, ACCOUNT),
        r"no cloud access|no clouds? (?:is|are) enabled|no (?:enabled )?clouds? (?:access|enabled)",
    ),
    _group(
        Verdict(AUTH, REGION, Topic.VERIFICATION),
        r"(?:request|account)[^\n]{0,80}in this region (?:is|are) being (?:validated|verified)",
        r"region (?:\S{1,40} )?is (?:not enabled|disabled|not opted[- ]in|not subscribed)|not (?:been )?(?:opted in|subscribed) to (?:this|the) region",
    ),
    _group(
        Verdict(AUTH, CLOUD, Topic.POLICY),
        r"accept (?:the )?(?:\w+ )?(?:terms|licen[cs]e)",
        r"not registered to use namespace",
    ),
    # --- quotas -------------------------------------------------------------------------------------------
    _group(
        Verdict(QUOTA),
        r"exceed\w{0,3} (?:\S+ ){0,8}?(?:quotas?|limits?)\b",
        r"\b(?:quotas?|limits?)\b[^\n.]{0,100}?(?:exceeded|exhausted|reached|insufficient|hit\b|used up)",
        r"(?:insufficient|not enough|no|unused|available|zero|found no) (?:\w+ ){0,3}quotas?\b",
        r"over (?:the |your |its )?(?:quota|limit)\b|over_quota",
        r"(?:reached|hit|at) (?:the |your |its |our )(?:\w+ ){0,3}(?:maximum|max|limit|quota)\b",
        r"maximum (?:allowed )?(?:number|count|amount) of [\w ./-]{1,60}?(?:reached|exceeded|allowed)",
        r"max [\w ]{1,40} count exceeded",
        r"more [\w ]{1,30} than your current [\w ]{1,30}limit",
        r"cannot create more than \d{1,9} ",
        r"(?:increase|raise) (?:your |the )?(?:\w+ ){0,2}(?:quota|limit)s?\b",
        r"(?:quota|limit) (?:of|is) 0\b|(?:current limit|limit): 0\b",
    ),
    _group(
        Verdict(QUOTA, CLOUD),
        r"(?:still held by |by |has )scheduling ?gates?|schedulinggated",
        r"couldn't assign flavors|insufficient unused quota|workload (?:is )?(?:not admitted|inadmissible)|waiting for quota",
        clouds="kubernetes ssh",
    ),
    _group(
        Verdict(QUOTA, CLOUD),
        r"\b(?:qos|assoc)(?:max|grp|min|job|resource)\w{1,40}\b",
        r"violates accounting/qos policy",
        r"\bmax(?:gres|cpu|node|tres|job|submit|mem)\w{0,20}per(?:user|account|job|node)\b",
        r"resource limits? (?:has|have) been (?:reached|exceeded)",
    ),
    # --- preempted ----------------------------------------------------------------------------------------
    _group(
        Verdict(PREEMPTED),
        r"(?:was|were|is|has been|been|being|got) (?:preempted|evicted|reclaimed|interrupted)",
        r"in state preempted|status[=:\" ]+preempted",
        r"spot (?:instance|vm|pod|machine|node)s? (?:\w+ ){0,3}(?:terminat|interrupt|evict|preempt|reclaim|revoke)\w{1,4}",
        r"(?:spot|low ?priority)[^\n]{0,60}(?:interruption|eviction|preemption)",
        r"due to preemption|preempted by|preempted in order to",
        r"event ?type[:=\" ]+preempt",
        r"\bnode was low on resource",
        r"outbid|bid (?:was )?exceeded",
    ),
    # --- capacity -----------------------------------------------------------------------------------------
    _group(
        Verdict(CAPACITY, None, Topic.RESERVATION),
        r"insufficient reserved capacity|reservation (?:\S{1,200} )?(?:does not have|has (?:no|insufficient)|is full|exhausted)",
        r"reserved capacity (?:is )?(?:exhausted|insufficient|not available)",
    ),
    _group(
        Verdict(CAPACITY, None, Topic.ADDRESSES),
        r"not enough (?:free |available )?(?:ip )?addresses|subnet (?:\S{1,100} )?(?:is full|does not have enough|has no (?:free|available))",
        r"(?:no|insufficient) (?:free |available |more )?(?:public )?(?:ip|ip addresses) (?:available|left|in)",
    ),
    _group(
        Verdict(CAPACITY, None, Topic.PRICE),
        r"(?:spot |bid |max(?:imum)? )(?:request )?price (?:\S{1,20} ){0,4}(?:is |of \S{1,20} is )?(?:lower|below|less|too low)",
    ),
    _group(
        Verdict(CAPACITY),
        r"(?:insufficient|not enough|no|no more|any|lack of|lacks?|limited|sufficient|enough|unavailable|zero) (?:\S+ ){0,5}?(?:capacity|stock|supply|inventory|availability)\b",
        r"(?:out of|sold out of|ran out of|run out of|exhausted|at|exceeds?) (?:\w+ ){0,3}?(?:capacity|stock|resources|supply|gpus?)\b",
        r"\bsold out\b|\bstock ?outs?\b|out[-_ ]of[-_ ]stock",
        r"capacity (?:\w+ ){0,4}(?:is |are |was )?(?:not |un|temporarily |currently )*(?:available|unavailable|exhausted|insufficient|reached|restrictions?|full|limited|constrained|exceeded)",
        r"(?:not have|n't have|not|insufficient|lacks?) (?:enough |sufficient |the |any )?(?:available |free |compute |gpu |hardware )?resources(?: are)? (?:available|to (?:deploy|fulfil|satisfy|create|start|launch|run|host|allocate)|in|left|on|for)",
        r"not (?:have )?enough (?:available |free |compute )?(?:resources|gpus?|hosts?|machines|nodes|cpus?|memory)",
        r"insufficient (?:available |free |compute |cpu |gpu |memory |host )?resources",
        r"(?:no|no longer any|any|zero|not find an?|no more|no suitable|no matching) (?:\S+ ){0,4}?(?:instances?|machines?|offers?|hosts?|nodes?|gpus?|servers?|pods?|vms?|hardware|resources|slots) (?:\S+ ){0,3}?(?:available|found|left|that (?:satisf|match|meet)|matching|with the requested|match|could be found|currently)",
        r"could not find an? (?:\w+ )?(?:offer|instance|machine|host|node|pod|server)",
        r"(?:not|n't|un|no longer|currently un|temporarily un) ?available (?:in|at|for|on|right now|at this time|at the moment|currently)",
        r"(?:is|are) (?:\w+ )?(?:un|not |no longer |sold |not currently )available",
        r"allocation failed|failed to allocate|unable to allocate|could not (?:be )?allocate|overconstrained|allocation failure",
        r"resources? (?:pool )?(?:is |are |has been |have been )?(?:exhausted|unavailable|depleted)",
        r"insufficient (?:nvidia\.com|amd\.com|gpu\.intel\.com|google\.com|habana\.ai|cloud-tpus\.google\.com|aws\.amazon\.com|cpu|memory|ephemeral-storage|pods|rdma|vpc\.amazonaws|smarter-devices|hugepages|gpu|vcpu|disk|storage|ram)",
        r"fully (?:booked|utilized|allocated|occupied)|no host is compatible|resource pool are insufficient",
        r"(?:all|every) (?:\S+ ){0,3}(?:are |is )(?:busy|occupied|in use|taken|rented)|already rented",
        r"selected configuration is no longer",
    ),
    _group(
        Verdict(CAPACITY, ZONE, Topic.NOT_OFFERED),
        r"(?:not|n't) (?:supported|available|offered)(?: for use)? in (?:your requested |the (?:requested )?)?(?:availability )?zone",
        r"(?:not|n't) (?:supported|available|offered) in (?:the )?(?:zone )?['\"]?[\w-]{1,40}['\"]? zone",
        r"features? (?:are|is) not compatible|(?:not|n't) (?:supported|available|offered) in zone",
    ),
    _group(
        Verdict(CAPACITY, REGION, Topic.NOT_OFFERED),
        r"(?:not|n't) (?:supported|available|offered|sold) in (?:the |this |your |that |requested )*(?:region|location|data ?cent(?:er|re))",
        r"(?:size|plan|machine type|instance type) (?:\S{1,80} )?is (?:not available|restricted|unavailable)",
        clouds="azure do digitalocean paperspace cudo fluidstack scp seeweb hyperbolic nebius lambda runpod",
    ),
    _group(
        Verdict(CAPACITY, CLOUD),
        r"\d{1,6}/\d{1,6} nodes are available",
        r"(?:did ?n[o']t|not) trigger scale-?up|max node group size reached|untolerated taint|had taints? that the pod didn't tolerate",
        r"didn't match (?:pod's )?node (?:affinity|selector)|cluster may be out of resources|too slow to autoscale",
        r"no nodes? (?:available|found|match)\w{0,4}|not found in (?:a|any) single node|not found in the cluster",
        r"pods? (?:\S{1,100} )?(?:is |are |stuck |still |remains? )+(?:in )?pending\b",
        clouds="kubernetes ssh",
    ),
    _group(
        Verdict(CAPACITY, CLOUD),
        r"\bpd\b[^\n]{0,40}\((?:resources|priority|nodes_?required|reqnodenotavail)",
        r"(?:reason|state)[=: ]+['\"]?(?:resources|priority|reqnodenotavail)\b",
        r"waiting for (?:resources|allocation)|reqnodenotavail|required node not available",
        r"nodes? required for job are (?:down|drained|reserved)|requested nodes are busy|unable to allocate resources",
        r"(?:nodes?|partition)[^\n]{0,60}\b(?:down|drain(?:ed|ing)?|alloc(?:ated)?)\b",
        clouds="slurm",
    ),
    # --- the request itself -------------------------------------------------------------------------------
    _group(
        Verdict(CONFIG, None, Topic.IMAGE),
        r"(?:imagepull|errimage|failed to pull (?:and unpack )?image|back-off pulling image|couldn't parse image reference|manifest (?:unknown|for \S{1,200} not found)|pull access denied|repository does not exist)",
        r"(?:image|ami)(?: id| family)? ['\"\[(]{0,3}[\w:./@-]{0,200}['\"\])]{0,3} ?(?:was |is |does |could |cannot )+(?:not |n't )?(?:be )?(?:exist|found|available|invalid)",
        r"(?:invalid|unknown|no such) (?:\w+ )?image\b|global/images/\S{1,200} was not found|could not find (?:\w+ )?image",
    ),
    _group(
        Verdict(CONFIG, ZONE, Topic.NOT_OFFERED),
        r"zones/[\w-]{1,40}/(?:machine|accelerator|disk)types/[\w.-]{1,80}['\"]?[^\n]{0,20}(?:was not found|does not exist|the referenced resource does not exist)",
        r"(?:machine|accelerator) type (?:with name )?['\"]?[\w.-]{1,60}['\"]? (?:does not exist|was not found|not found) in zone",
        r"zones?[ /]['\"]?(?:projects/\S{1,80}/zones/)?[\w-]{1,40}['\"]? (?:was not found|does not exist)|(?:invalid|unknown) (?:availability )?zone",
        clouds="gcp aws",
    ),
    _group(
        Verdict(CONFIG, REGION),
        r"regions/[\w-]{1,40}/subnetworks/\S{1,120} (?:was )?not found",
        r"(?:subnet(?:work)?|subnets|subnet id)\b[^\n]{0,80}(?:not found|does not exist|no longer exists)",
        r"file system is in a different region|file-system-in-wrong-region",
        r"no default (?:vpc|subnet)",
        clouds="aws gcp azure oci ibm nebius lambda do",
    ),
    _group(
        Verdict(CONFIG, CLOUD),
        r"global/networks/\S{1,120} was not found|no vpc with name|iam ?instance ?profile",
        clouds="aws gcp",
    ),
    _group(
        Verdict(CONFIG, ACCOUNT),
        r"catalog does not contain any|no (?:launchable )?resources? (?:found for|satisfying)|no launchable resource",
        r"cluster name \S{1,200} is (?:invalid|too long)|invalid cluster name|(?:failed to parse|invalid) task yaml|invalid (?:yaml|task|skypilot config)",
        r"requested resources do not match|storage (?:mount path|source|spec|name|mode)\b[^\n]{0,80}(?:conflict|invalid|not|must)",
        r"task\b[^\n]{0,80} requires [^\n]{1,120} (?:which|that) (?:is|are) not (?:available|supported|offered)",
        r"api version mismatch|(?:client|server) (?:version )?(?:is )?(?:too old|incompatible)",
        r"cluster \S{1,80} (?:does not exist|not found)",
    ),
    _group(
        Verdict(CONFIG, CLOUD),
        r"(?:invalid|unknown) (?:partition|generic resource|gres|feature|constraint|qos|reservation|nodes?|time limit)\b[^\n]{0,30}",
        r"requested node configuration is not available|node count specification invalid|more processors requested than permitted",
        r"requested (?:time limit|gres)[^\n]{0,40}(?:invalid|exceeds)|invalid [\w-]{1,30} specification",
        r"not in this partition|partition \S{1,60} (?:is invalid|not found|does not exist)",
        clouds="slurm",
    ),
    _group(
        Verdict(CONFIG, CLOUD),
        r"namespaces? \"?[\w.-]{1,80}\"? not found|context \"?[\w.:/@-]{1,120}\"? (?:does not exist|was not found|not found)",
        r"(?:secret|configmap|persistentvolumeclaim|serviceaccount|runtimeclass|storageclass|service account)s?(?:\.\S{1,40})? \"?[\w./-]{1,80}\"? not found",
        r"unbound immediate persistentvolumeclaims|no configuration has been provided|invalid kube-?config|error validating data",
        r"back-off \S{1,20} restarting failed|crashloopbackoff|oomkilled|spec\.\S{1,80}: (?:invalid value|forbidden|required value)",
        clouds="kubernetes ssh",
    ),
    _group(
        Verdict(CONFIG),
        r"parameter validation failed|(?:invalid|unsupported|unknown|illegal|malformed|unrecogni[sz]ed) (?:value|parameter|field|argument|request|region|location|zone|instance ?type|machine ?type|shape|size|plan|gpu(?: type)?|accelerator(?: name| type)?|vm size|option|key|flavor|template|configuration|format|name|data)\b",
        r"(?:instance|machine|gpu|vm|server|accelerator|image|region|zone|key ?pair|ssh key|security group|template|volume|network|vpc|shape|flavor|plan|size|file system|project|snapshot|launch template|placement group|data ?cent(?:er|re))s?(?: type| name| id| group)?s? ['\"\[(]{0,3}[\w:./@+-]{0,120}['\"\])]{0,3} ?(?:does not|doesn't|do not|was not|were not|is not|could not be|not|cannot be) (?:exist|found|recogni[sz]ed|valid)",
        r"no such (?:instance|machine|region|zone|size|type|image|key|file|volume|network|project|option|template)",
        r"(?:is|are) (?:required|mandatory) (?:but|field|parameter)|missing (?:required )?(?:parameter|field|argument|value|property)",
        r"is not (?:a )?(?:valid|supported)\b|(?:is|are) not supported (?:by|on|with|for)|not implemented",
        r"host key verification failed|the value of parameter \S{1,60} is invalid",
        tier=Tier.PHRASE,
    ),
    _group(
        Verdict(CONFIG),
        r"referenced resource does not exist|resource '?\S{1,250}'? was not found",
        tier=Tier.PHRASE,
    ),
    # --- passing trouble ----------------------------------------------------------------------------------
    _group(
        Verdict(TRANSIENT, ACCOUNT, Topic.NETWORK),
        r"(?:skypilot|sky) api server|port=46580|(?:127\.0\.0\.1|localhost|0\.0\.0\.0):46580",
        tier=Tier.PHRASE,
        clouds="skypilot sky",
    ),
    _group(
        Verdict(TRANSIENT, ZONE, Topic.SSH),
        r"ssh: connect to host[^\n]{0,120}|kex_exchange_identification[^\n]{0,120}|ssh_exchange_identification[^\n]{0,120}",
        r"connection (?:to \S{1,80} )?closed by (?:remote host|\S{1,60} port \d{1,5})|port 22: [^\n]{0,60}",
    ),
    _group(
        Verdict(TIMEOUT),
        r"(?:timed?[ -]?out|timeout)[^\n]{0,60}?(?:waiting|waited|to (?:start|become|reach|boot|provision|be ready)|ssh|provision|launch|instances?|vms?\b|pods?\b|nodes?\b|in the allotted)",
        r"(?:waiting|waited|wait|provision\w{0,4}|launch\w{0,3}|start\w{0,3}|boot\w{0,3}|allotted|ready|running)\b[^\n]{0,120}?(?:timed? ?out|time ?limit)",
        r"did not (?:finish|complete|become|come up|start|boot|reach|register)[^\n]{0,60}(?:allotted|in time|within|after|before)",
        r"(?:not (?:ready|running|reachable|up)|still (?:pending|starting|booting|provisioning)) after \d{1,6}",
        r"(?:deadline|time) (?:has )?(?:exceeded|elapsed|expired) (?:while|waiting)|waited (?:for )?(?:more than )?\d{1,6}|due to time limit",
        tier=Tier.PHRASE,
    ),
    _group(
        Verdict(TRANSIENT, None, Topic.NETWORK),
        r"upstream connect error|disconnect/reset|connection (?:was |is |has been |were )?(?:failure|failed|refused|reset|aborted|closed|error|lost|timed ?out|broken)|connect: [^\n]{0,60}",
        r"(?:could not|couldn't|cannot|can't|unable to|failed to|failure to) (?:connect|reach|resolve|establish|contact)",
        r"(?:was refused|did you specify the right host)|no route to host|network is (?:unreachable|down)|broken pipe|host is (?:down|unreachable)",
        r"name (?:or service not known|resolution)|no such host|nodename nor servname|getaddrinfo|name_not_resolved",
        r"max retries exceeded|remote ?(?:end closed|disconnected)|server disconnected|unexpected eof|\beof occurred|incomplete ?read",
        r"(?:read|connect|connection|request|operation|i/o|tls handshake|socket|gateway|response|upstream)[ -]?(?:operation )?time[ds]?[ -]?out|timed out on send",
        r"context deadline exceeded|deadline exceeded|client\.timeout exceeded|net/http: [^\n]{0,60}",
        r"(?:ssl|tls|x509)[:_ ][^\n]{0,80}(?:error|fail|handshake|verify|certificate)|certificate (?:verify failed|has expired|signed by unknown)",
        tier=Tier.PHRASE,
    ),
    _group(
        Verdict(TRANSIENT),
        r"(?:internal|unexpected)[\w ]{0,20}(?:server |service |execution |operation )?(?:error|failure)|something went wrong on our",
        r"service (?:is |was )?(?:temporarily |currently )?(?:unavailable|overloaded|down)|temporar(?:y|ily) (?:failure|error|unavailable|overloaded|problem)",
        r"bad gateway|gateway time-?out|backend error|server (?:is )?(?:busy|overloaded|too busy|error)|under maintenance|maintenance mode",
        r"(?:another|other) operation (?:is )?(?:in progress|running|pending)|(?:is )?not (?:yet )?ready\b|please retry|retry (?:the request|later)|operation was cancel+ed|resource is (?:locked|in use|busy)",
        r"slurmctld[^\n]{0,40}(?:down|not running|not respond)|unable to give you a response",
        r"leader (?:changed|election)|etcdserver|apiserver (?:is )?(?:not ready|shutting down)|try again later",
        r"request \S{0,60} ?(?:was|has been|is) cancel+ed|due to node failure|launch failed requeued",
        tier=Tier.PHRASE,
    ),
    # --- somebody gave up ---------------------------------------------------------------------------------
    _group(
        Verdict(CAPACITY, CLOUD, Topic.WRAPPER),
        r"failed to (?:acquire|provision|launch)[^\n]{0,40} in all (?:regions|zones/regions)|in all regions (?:of|in|on)\b",
        tier=Tier.WRAPPER,
    ),
    _group(
        Verdict(CAPACITY, REGION, Topic.WRAPPER),
        r"failed to (?:acquire|provision|launch) (?:\w+ ){0,3}(?:in|on) (?:all |any )?(?:possible )?zones? (?:in|of)",
        tier=Tier.WRAPPER,
    ),
    _group(
        Verdict(CAPACITY, ACCOUNT, Topic.WRAPPER),
        r"failed to provision (?:all|any|on all|the (?:requested|cluster)|resources on)[^\n]{0,60}(?:possible|launchable|clouds|candidates)",
        r"(?:all|every) (?:launchable|candidate|requested|possible) (?:resources|locations|clouds)|relax (?:the task's|its|your) resource",
        tier=Tier.WRAPPER,
    ),
    # SkyPilot's AWS provisioner, after all subnets of one zone.
    _group(
        Verdict(CAPACITY, ZONE, Topic.WRAPPER), r"failed to launch instances|max attempts exceeded", tier=Tier.WRAPPER
    ),
    _group(
        Verdict(CAPACITY, None, Topic.WRAPPER),
        r"failed to acquire resources|all provisioning attempts failed",
        r"failed to provision\b",
        tier=Tier.WRAPPER,
    ),
)
