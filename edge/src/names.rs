//! Names for tunnels: how one is made up, and which ones nobody gets.

use uniroute_shared::id::Subdomain;

/// A new name such as `brave-otter-7k3m9x2hdq`: readable, and with more than 64 random bits nobody
/// finds it by trying.
pub(crate) fn random_name() -> Subdomain {
    let mut random = [0; 16];
    getrandom::fill(&mut random).expect("the operating system has a source of randomness");
    let name = name_from(u128::from_le_bytes(random));
    Subdomain::parse(&name).expect("words and digits are lower-case letters and digits")
}

/// Whether `name` is kept for the edge itself or for a service that others look for under it, in
/// any case of letters.
pub(crate) fn is_reserved(name: &str) -> bool {
    let listed = |list: &[&str], name: &str| list.iter().any(|n| n.eq_ignore_ascii_case(name));
    let stem = name.trim_end_matches(|c: char| c.is_ascii_digit());
    name.starts_with('_') || listed(RESERVED, name) || listed(NUMBERED, stem)
}

/// Spends `random` on two words and the tail. What it has above the 64 bits needed makes every
/// choice as good as even.
fn name_from(random: u128) -> String {
    let mut rest = random;
    let mut pick = |choices: usize| {
        let choices = choices as u128;
        let index = rest % choices;
        rest /= choices;
        usize::try_from(index).expect("less than a length")
    };
    let (adjective, noun) = (ADJECTIVES[pick(ADJECTIVES.len())], NOUNS[pick(NOUNS.len())]);
    let tail: String = (0..TAIL_LEN).map(|_| char::from(TAIL[pick(TAIL.len())])).collect();
    format!("{adjective}-{noun}-{tail}")
}

/// Digits and letters of the tail: no vowels, so that it spells no word, and no `0`, `1` and `l`.
const TAIL: &[u8; 28] = b"23456789bcdfghjkmnpqrstvwxyz";

/// With two words of 8 bits, ten of these make just over 64 bits.
const TAIL_LEN: usize = 10;

#[rustfmt::skip]
const RESERVED: &[&str] = &[
    // Our own, and what a stranger would take for the operator's word. Everyday words such as
    // demo, dev, app or blog are free: people want them.
    "account", "accounts", "admin", "administrator", "api", "assets", "auth", "billing", "cdn",
    "cluster", "connect", "console", "control", "dashboard", "edge", "health", "healthz", "help",
    "internal", "login", "logout", "metrics", "oauth", "official", "payment", "payments", "portal",
    "readyz", "register", "root", "security", "signin", "signup", "sso", "static", "status",
    "support", "system", "tunnel", "tunnels", "uniroute", "update", "updates", "web", "ws", "wss",
    // Looked up by mail programs and other software, or by certificate authorities.
    "abuse", "autoconfig", "autodiscover", "broadcasthost", "ftp", "hostmaster", "imap",
    "isatap", "localdomain", "localhost", "mail", "mailer-daemon", "mta-sts", "noc", "no-reply",
    "noreply", "openpgpkey", "pop", "pop3", "postmaster", "sftp", "smtp", "ssladmin",
    "ssladministrator", "sslwebmaster", "sysadmin", "webmail", "webmaster", "wpad",
];

/// Reserved alone and with any number behind.
const NUMBERED: &[&str] = &["dns", "edge", "mx", "ns", "www"];

#[rustfmt::skip]
const ADJECTIVES: [&str; 256] = [
    "able", "agile", "airy", "alert", "alpine", "amber", "ample", "apt", "aqua", "arctic", "ardent",
    "autumn", "avid", "awake", "azure", "balmy", "basic", "beige", "bold", "bonny", "brave",
    "breezy", "bright", "brisk", "bronze", "brown", "bubbly", "bumpy", "busy", "calm", "candid",
    "caring", "casual", "cedar", "cheery", "chilly", "civic", "civil", "clean", "clear", "clever",
    "cobalt", "comfy", "cool", "copper", "coral", "cosmic", "cosy", "cozy", "crafty", "cream",
    "creamy", "crisp", "cubic", "curly", "cyan", "dainty", "dapper", "daring", "deep", "deft",
    "dewy", "direct", "divine", "double", "downy", "dreamy", "droll", "eager", "early", "earthy",
    "easy", "elder", "elfin", "epic", "equal", "even", "exact", "expert", "fair", "famous", "fancy",
    "fiery", "fine", "firm", "fleet", "floral", "fluent", "fluffy", "flying", "fond", "formal",
    "frank", "free", "fresh", "frosty", "frugal", "full", "fun", "funny", "fuzzy", "garnet",
    "gentle", "giant", "giddy", "gifted", "glad", "glossy", "golden", "good", "grand", "great",
    "green", "grey", "happy", "hardy", "hazel", "hearty", "heroic", "hidden", "honest", "huge",
    "humble", "icy", "ideal", "indigo", "ivory", "jade", "jazzy", "jolly", "jovial", "joyful",
    "jumbo", "keen", "kind", "kindly", "lacy", "large", "lavish", "leafy", "level", "light",
    "lilac", "lively", "local", "lofty", "loyal", "lucid", "lucky", "lunar", "magic", "major",
    "maple", "marble", "mellow", "merry", "mighty", "mild", "minor", "mint", "misty", "modern",
    "modest", "mossy", "neat", "new", "nimble", "noted", "novel", "oaken", "ocean", "olive", "opal",
    "orange", "outer", "peach", "pearl", "perky", "pink", "placid", "plain", "plucky", "plum",
    "polar", "proud", "pure", "quaint", "quick", "quiet", "rapid", "rare", "ready", "real", "regal",
    "rich", "robust", "rosy", "round", "royal", "ruby", "rugged", "rural", "rustic", "safe",
    "sandy", "satin", "scenic", "serene", "sharp", "shiny", "silent", "silky", "silver", "simple",
    "sleek", "smart", "smooth", "snowy", "social", "soft", "solar", "solid", "sonic", "spry",
    "stable", "sunny", "super", "sweet", "swift", "tall", "tawny", "teal", "tidy", "tiny", "topaz",
    "true", "urban", "valid", "vast", "vital", "vivid", "warm", "wavy", "wee", "whole", "wild",
    "windy", "wise", "witty", "woody", "woven", "young", "zany", "zen", "zesty", "zippy",
];

#[rustfmt::skip]
const NOUNS: [&str; 256] = [
    "acorn", "anchor", "anvil", "apple", "arbor", "arch", "arrow", "aspen", "atlas", "atoll",
    "aurora", "badger", "bagel", "bamboo", "banjo", "barley", "barn", "basil", "basin", "bay",
    "beacon", "beaver", "bell", "berry", "birch", "bison", "bloom", "bobcat", "branch", "bread",
    "breeze", "bridge", "brook", "bugle", "cabin", "cactus", "camel", "candle", "canoe", "canyon",
    "cargo", "castle", "cave", "cedar", "cello", "chalet", "cherry", "cliff", "cloud", "clover",
    "cobra", "comet", "condor", "cookie", "cove", "coyote", "crane", "crater", "creek", "crow",
    "crown", "daisy", "dale", "dawn", "deer", "delta", "desert", "dome", "donkey", "dove", "dragon",
    "drum", "duck", "dune", "eagle", "echo", "elk", "elm", "ember", "emu", "falcon", "fawn",
    "fennel", "fern", "ferret", "ferry", "field", "finch", "fir", "fjord", "flame", "flute",
    "forest", "fox", "frog", "galaxy", "garden", "gecko", "geyser", "ginger", "glade", "glen",
    "goose", "gopher", "gull", "hamlet", "harbor", "harp", "hawk", "hazel", "heath", "heron",
    "hill", "hippo", "holly", "honey", "hornet", "ibex", "ibis", "inlet", "iris", "island", "ivy",
    "jackal", "jaguar", "jay", "jungle", "kayak", "kite", "kiwi", "koala", "lake", "larch", "lark",
    "laurel", "lemon", "lemur", "lilac", "lily", "linden", "lion", "lizard", "llama", "lotus",
    "lynx", "magnet", "magpie", "mango", "maple", "marlin", "marsh", "marten", "meadow", "melon",
    "mesa", "meteor", "mill", "mimosa", "mint", "mole", "moon", "moose", "moth", "motor", "mule",
    "nebula", "nectar", "newt", "nova", "nutmeg", "oak", "oasis", "ocean", "olive", "onion",
    "orbit", "orca", "orchid", "oriole", "osprey", "owl", "oyster", "paddle", "palm", "panda",
    "papaya", "peach", "pear", "pebble", "pepper", "petal", "piano", "pigeon", "pine", "planet",
    "plaza", "plum", "pond", "poplar", "poppy", "prism", "puffin", "puma", "python", "quail",
    "quartz", "quince", "rabbit", "radish", "rain", "raven", "reef", "ridge", "river", "robin",
    "rocket", "rose", "sage", "salmon", "saturn", "scarab", "shore", "sierra", "sky", "sloth",
    "snow", "spruce", "squid", "star", "stone", "stork", "stream", "summit", "sun", "swan", "tapir",
    "thrush", "tiger", "toad", "topaz", "toucan", "trail", "trout", "tulip", "tundra", "turtle",
    "vine", "viola", "wave", "whale", "wind", "wolf", "woods", "wren", "yak", "zebra",
];

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_are_distinct_valid_and_free() {
        let names: HashSet<_> = (0..10_000).map(|_| random_name()).collect();
        assert_eq!(names.len(), 10_000);
        for name in names {
            assert_eq!(Subdomain::parse(name.as_str()), Ok(name.clone()));
            assert!(name.as_str().len() <= 24 && !is_reserved(name.as_str()), "{name}");
            assert_eq!(name.as_str().split('-').count(), 3);
        }
    }

    #[test]
    fn a_name_has_64_random_bits() {
        let bits = |choices: usize| f64::from(u32::try_from(choices).unwrap()).log2();
        let tail = 10.0 * bits(TAIL.len());
        assert!(bits(ADJECTIVES.len()) + bits(NOUNS.len()) + tail >= 64.0);
        assert_eq!(TAIL_LEN, 10);
        for list in [ADJECTIVES, NOUNS] {
            assert_eq!(list.iter().collect::<HashSet<_>>().len(), list.len());
        }
        assert_eq!(TAIL.iter().collect::<HashSet<_>>().len(), TAIL.len());
    }

    #[test]
    fn all_randomness_counts() {
        assert_eq!(name_from(0), "able-acorn-2222222222");
        let space = 256 * 256 * 28_u128.pow(10);
        assert_ne!(name_from(space - 1), name_from(space / 28 - 1));
        assert_eq!(name_from(space - 1), name_from(2 * space - 1));
        let long: String = name_from(u128::MAX);
        assert!(Subdomain::parse(&long).is_ok());
    }

    #[test]
    fn no_pair_of_words_spells_something_else() {
        const BAD: &[&str] = &[
            "anal", "anus", "arse", "ass", "bastard", "bitch", "boob", "butt", "cock", "coon",
            "crap", "cum", "cunt", "dago", "damn", "dick", "dyke", "fag", "fat", "fuck", "hell",
            "homo", "hooker", "kike", "kill", "meth", "nazi", "negro", "nig", "nipple", "nude",
            "orgy", "paki", "pee", "penis", "pimp", "piss", "poo", "porn", "prick", "puss", "rape",
            "scum", "semen", "sex", "shit", "slag", "slut", "spic", "suck", "tard", "tit", "turd",
            "twat", "wank", "whore", "wog",
        ];
        for adjective in ADJECTIVES {
            for noun in NOUNS {
                let joined = format!("{adjective}{noun}");
                let found = BAD.iter().find(|bad| joined.contains(**bad));
                assert_eq!(found, None, "{joined}");
            }
        }
        assert!(TAIL.iter().all(|digit| !b"aeioul01".contains(digit)));
    }

    #[test]
    fn the_edge_keeps_its_names() {
        for name in ["www", "WWW", "www2", "ns1", "ns", "api", "_acme-challenge", "localhost"] {
            assert!(is_reserved(name), "{name}");
        }
        for name in ["shop", "api2", "nsx", "my-www", "wwwx", "2", ""] {
            assert!(!is_reserved(name), "{name}");
        }
    }
}
