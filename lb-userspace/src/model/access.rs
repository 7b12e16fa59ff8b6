//! Access lists: which sources may send to the services that name one. Parsed and checked; no I/O.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    str::FromStr,
    sync::Arc,
};

use ipnet::IpNet;
use lb_common::tables::{AccessKey, Address, access};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{ModelError, group};

/// Bits of an address that stand before an IPv4 one (RFC 4291 §2.5.5.2).
pub(super) const V4_BITS: u8 = 96;

/// Prefixes of one list at most.
pub const MAX_PREFIXES: usize = 1 << 20;

/// The addresses that begin with the same bits: `ADDRESS/LENGTH`, or one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    address: Address,
    /// Of 128, those of an IPv4 address from 96 on.
    bits: u8,
}

impl Prefix {
    /// All of IPv4.
    pub(super) const V4: Self = Self {
        address: Address::v4(0),
        bits: V4_BITS,
    };
    /// All of IPv6.
    pub(super) const V6: Self = Self {
        address: Address::v6([0; 16]),
        bits: 0,
    };

    fn new(address: Address, bits: u8) -> Self {
        Self { address, bits }
    }

    /// The first bits of an address, of 128.
    pub fn of(address: Address, bits: u8) -> Self {
        Self::new(address.prefix(bits.into()), bits)
    }

    /// How many bits count, of 128: those of an IPv4 address from 96 on.
    pub fn bits(self) -> u8 {
        self.bits
    }

    /// What it is found by in the list of that number.
    pub fn key(self, list: u32) -> AccessKey {
        AccessKey {
            bits: AccessKey::LIST_BITS + u32::from(self.bits),
            list,
            address: self.address,
        }
    }

    /// The prefix that is found by a key of some list.
    pub fn of_key(key: &AccessKey) -> Self {
        let bits = key.bits.saturating_sub(AccessKey::LIST_BITS);
        Self::new(key.address, bits as u8)
    }

    /// Whether an address begins so.
    pub fn contains(self, ip: IpAddr) -> bool {
        Address::from(ip).prefix(self.bits.into()) == self.address
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ip = IpAddr::from(self.address);
        // All of IPv6 begins where IPv4 would.
        let length = match ip {
            IpAddr::V4(_) => self.bits.saturating_sub(V4_BITS),
            IpAddr::V6(_) => self.bits,
        };
        write!(f, "{ip}/{length}")
    }
}

impl FromStr for Prefix {
    type Err = ModelError;

    fn from_str(text: &str) -> Result<Self, ModelError> {
        let bad = |problem: String| ModelError::BadPrefix {
            text: text.to_owned(),
            problem,
        };
        let host = |_| text.parse::<IpAddr>().map(IpNet::from);
        let net: IpNet = text.parse().or_else(host).map_err(|_| {
            bad(
                "write ADDRESS/LENGTH, such as 192.0.2.0/24 or 2001:db8::/32, or one address"
                    .to_owned(),
            )
        })?;
        if net.trunc() != net {
            let problem = format!(
                "has bits set beyond /{}: write {}",
                net.prefix_len(),
                net.trunc()
            );
            return Err(bad(problem));
        }
        match net {
            IpNet::V4(v4) => Ok(Self {
                address: IpAddr::V4(v4.addr()).into(),
                bits: V4_BITS + v4.prefix_len(),
            }),
            IpNet::V6(v6) if v6.prefix_len() >= V4_BITS && v6.addr().to_ipv4_mapped().is_some() => {
                Err(bad(
                    "IPv4 addresses are written as such: 192.0.2.0/24".to_owned()
                ))
            }
            IpNet::V6(v6) => Ok(Self {
                address: IpAddr::V6(v6.addr()).into(),
                bits: v6.prefix_len(),
            }),
        }
    }
}

impl Serialize for Prefix {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Prefix {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'_, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// What a list says of packets from a prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Access {
    /// They come through.
    Allow,
    /// They are dropped.
    Deny,
    /// Of source routes: they are for the subset of this number.
    Subset(u8),
}

impl Access {
    /// As the program has it: one of [`lb_common::tables::access`].
    pub fn number(self) -> u32 {
        match self {
            Self::Allow => access::ALLOWED,
            Self::Deny => access::DENIED,
            Self::Subset(number) => access::SUBSET + u32::from(number),
        }
    }

    /// What a number of the program's means.
    pub fn of(number: u32) -> Self {
        match number {
            access::ALLOWED => Self::Allow,
            access::SUBSET.. => Self::Subset((number - access::SUBSET) as u8),
            _ => Self::Deny,
        }
    }

    /// As lists and their users call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::Subset(_) => "route",
        }
    }
}

/// What a list says of a prefix.
pub type Rule = (Prefix, Access);

/// The rules of a list, in the order of their prefixes, each of which is there once; those for all other sources of
/// either family included.
pub type Rules = Arc<Vec<Rule>>;

/// Prefixes that may send, and such that may not. Of those that hold a source, the longest decides. Sources in none
/// of them are denied where any prefix is allowed, and allowed otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessList {
    name: String,
    /// Shared, since it may be large and is compared often.
    rules: Rules,
    /// Whether the list itself says what becomes of all of IPv4, and of IPv6.
    says_all: [bool; 2],
}

impl AccessList {
    /// A list of these prefixes.
    ///
    /// # Errors
    /// The name, or a prefix that is both allowed and denied, or too many of them.
    pub fn new(
        name: &str,
        allow: impl IntoIterator<Item = Prefix>,
        deny: impl IntoIterator<Item = Prefix>,
    ) -> Result<Self, ModelError> {
        let refused = |problem| ModelError::BadAccessList {
            name: name.to_owned(),
            problem,
        };
        group::parse_name(name).map_err(|_| {
            refused(
                "that is not a list's name: use 1 to 64 of a-z, A-Z, 0-9, -, _ and .".to_owned(),
            )
        })?;
        let with = |access| move |prefix| (prefix, access);
        let mut rules: Vec<Rule> = allow.into_iter().map(with(Access::Allow)).collect();
        let allows = !rules.is_empty();
        rules.extend(deny.into_iter().map(with(Access::Deny)));
        rules.sort_unstable();
        rules.dedup();
        let mut pairs = rules.iter().zip(rules.iter().skip(1));
        if let Some(((prefix, _), _)) = pairs.find(|((a, _), (b, _))| a == b) {
            return Err(refused(format!(
                "{prefix} is both allowed and denied: leave one out"
            )));
        }
        if rules.len() > MAX_PREFIXES {
            let count = rules.len();
            return Err(refused(format!(
                "{count} prefixes are too many: at most {MAX_PREFIXES}"
            )));
        }
        let others = if allows { Access::Deny } else { Access::Allow };
        let says_all = [Prefix::V4, Prefix::V6].map(|all| {
            match rules.binary_search_by_key(&all, |&(prefix, _)| prefix) {
                Ok(_) => true,
                Err(at) => {
                    rules.insert(at, (all, others));
                    false
                }
            }
        });
        Ok(Self {
            name: name.to_owned(),
            rules: Arc::new(rules),
            says_all,
        })
    }

    /// What services name it by.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What becomes of sources in none of its prefixes.
    pub fn others(&self) -> Access {
        let mut allowed = self.prefixes(Access::Allow);
        if allowed.next().is_some() {
            Access::Deny
        } else {
            Access::Allow
        }
    }

    /// What it says, of all other sources too.
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// The prefixes that were given for this.
    pub fn prefixes(&self, access: Access) -> impl Iterator<Item = Prefix> {
        let [v4, v6] = self.says_all;
        let given = move |prefix| (v4 || prefix != Prefix::V4) && (v6 || prefix != Prefix::V6);
        let rules = self.rules.iter().filter(move |&&(_, says)| says == access);
        rules.map(|&(prefix, _)| prefix).filter(move |&p| given(p))
    }

    /// What becomes of packets from a source, and the prefix that says so.
    pub fn judge(&self, source: IpAddr) -> Rule {
        let address = Address::from(source);
        let rule = |bits: u8| {
            let prefix = Prefix::of(address, bits);
            let at = self
                .rules
                .binary_search_by_key(&prefix, |&(prefix, _)| prefix);
            at.ok().and_then(|at| self.rules.get(at).copied())
        };
        // There is one for everything else.
        let found = (0..=128).rev().find_map(rule);
        found.unwrap_or((Prefix::V6, Access::Deny))
    }

    /// The list after prefixes have come and gone; one that comes changes sides where it is there already.
    ///
    /// # Errors
    /// A prefix that is to go and is not there, or as [`AccessList::new`].
    pub fn edited(&self, edit: &AccessEdit) -> Result<Self, ModelError> {
        let both = [Access::Allow, Access::Deny];
        let given = both.into_iter().flat_map(|access| {
            let prefixes = self.prefixes(access);
            prefixes.map(move |prefix| (prefix, access))
        });
        let mut rules: BTreeMap<Prefix, Access> = given.collect();
        for prefix in &edit.remove {
            rules
                .remove(prefix)
                .ok_or_else(|| ModelError::UnknownPrefix {
                    name: self.name.clone(),
                    prefix: prefix.to_string(),
                })?;
        }
        let denied: BTreeSet<Prefix> = edit.deny.iter().copied().collect();
        if let Some(prefix) = edit.allow.iter().find(|prefix| denied.contains(prefix)) {
            return Err(ModelError::BadAccessList {
                name: self.name.clone(),
                problem: format!("{prefix} is both allowed and denied: leave one out"),
            });
        }
        rules.extend(edit.allow.iter().map(|&prefix| (prefix, Access::Allow)));
        rules.extend(edit.deny.iter().map(|&prefix| (prefix, Access::Deny)));
        let of = |access| {
            let rules = rules.iter().filter(move |&(_, &says)| says == access);
            rules.map(|(&prefix, _)| prefix)
        };
        Self::new(&self.name, of(Access::Allow), of(Access::Deny))
    }
}

/// Prefixes that come and go.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccessEdit {
    /// Allowed from now on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<Prefix>,
    /// Denied from now on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub deny: Vec<Prefix>,
    /// Not in the list any more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remove: Vec<Prefix>,
}

/// Prefixes of a text: one a line, empty lines and what follows a `#` left aside.
///
/// # Errors
/// The first line that is none, from 1, and why.
pub fn parse_prefixes(text: &str) -> Result<Vec<Prefix>, (usize, String)> {
    let lines = text.lines().zip(1..);
    let prefixes = lines.filter_map(|(line, number)| {
        let line = line.split('#').next().unwrap_or_default().trim();
        (!line.is_empty()).then(|| {
            let prefix: Result<Prefix, ModelError> = line.parse();
            prefix.map_err(|error| (number, error.to_string()))
        })
    });
    prefixes.collect()
}

/// As the API and the kept state have a list.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    name: String,
    #[serde(default)]
    allow: Vec<Prefix>,
    #[serde(default)]
    deny: Vec<Prefix>,
}

impl Serialize for AccessList {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let written = Written {
            name: self.name.clone(),
            allow: self.prefixes(Access::Allow).collect(),
            deny: self.prefixes(Access::Deny).collect(),
        };
        written.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for AccessList {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Written { name, allow, deny } = Written::deserialize(deserializer)?;
        Self::new(&name, allow, deny).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefixes(texts: &[&str]) -> Vec<Prefix> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn list(allow: &[&str], deny: &[&str]) -> AccessList {
        AccessList::new("some", prefixes(allow), prefixes(deny)).unwrap()
    }

    fn judged(list: &AccessList, source: &str) -> (String, &'static str) {
        let (prefix, access) = list.judge(source.parse().unwrap());
        (prefix.to_string(), access.name())
    }

    #[test]
    fn the_longest_prefix_decides() {
        let list = list(
            &["10.0.0.0/8", "10.1.1.1", "2001:db8::/32"],
            &["10.1.0.0/16"],
        );
        for (source, prefix, access) in [
            ("10.2.3.4", "10.0.0.0/8", "allow"),
            ("10.1.3.4", "10.1.0.0/16", "deny"),
            ("10.1.1.1", "10.1.1.1/32", "allow"),
            ("2001:db8::5", "2001:db8::/32", "allow"),
        ] {
            assert_eq!(judged(&list, source), (prefix.to_owned(), access));
        }
    }

    #[test]
    fn others_are_denied_beside_an_allowed_prefix_and_allowed_otherwise() {
        let allowing = list(&["10.0.0.0/8"], &[]);
        let denying = list(&[], &["10.0.0.0/8"]);
        for (source, all) in [("192.0.2.1", "0.0.0.0/0"), ("2001:db8::1", "::/0")] {
            assert_eq!(judged(&allowing, source), (all.to_owned(), "deny"));
            assert_eq!(judged(&denying, source), (all.to_owned(), "allow"));
        }
        assert_eq!(judged(&list(&[], &[]), "192.0.2.1").1, "allow");
    }

    #[test]
    fn what_a_list_says_of_one_family_is_nothing_to_the_other() {
        let list = list(&["10.0.0.0/8", "::/0"], &[]);
        assert_eq!(judged(&list, "2001:db8::1").1, "allow");
        assert_eq!(judged(&list, "192.0.2.1").1, "deny");
        let given: Vec<String> = list
            .prefixes(Access::Allow)
            .map(|p| p.to_string())
            .collect();
        assert_eq!(given, ["::/0", "10.0.0.0/8"]);
        assert_eq!(list.prefixes(Access::Deny).count(), 0);
    }

    #[test]
    fn bad_prefixes_say_what_would_be_right() {
        for (text, hint) in [
            ("10.0.0.0/33", "write ADDRESS/LENGTH"),
            ("ten", "write ADDRESS/LENGTH"),
            ("10.0.0.1/8", "has bits set beyond /8: write 10.0.0.0/8"),
            ("::ffff:10.0.0.0/104", "IPv4 addresses are written as such"),
        ] {
            let error = text.parse::<Prefix>().unwrap_err().to_string();
            assert!(error.contains(text) && error.contains(hint), "{error}");
        }
    }

    #[test]
    fn a_prefix_on_both_sides_is_refused_and_twice_on_one_is_not() {
        let both = AccessList::new("some", prefixes(&["10.0.0.0/8"]), prefixes(&["10.0.0.0/8"]));
        let error = both.unwrap_err().to_string();
        assert!(error.contains("10.0.0.0/8 is both"), "{error}");
        assert_eq!(list(&["10.0.0.1", "10.0.0.1/32"], &[]).rules().len(), 3);
        assert!(AccessList::new("a list", [], []).is_err());
    }

    #[test]
    fn edits_add_remove_and_change_sides() {
        let list = list(&["10.0.0.0/8"], &["10.1.0.0/16"]);
        let edit = AccessEdit {
            allow: prefixes(&["10.1.0.0/16"]),
            deny: prefixes(&["10.2.0.0/16"]),
            remove: prefixes(&["10.0.0.0/8"]),
        };
        let edited = list.edited(&edit).unwrap();
        assert_eq!(edited, self::list(&["10.1.0.0/16"], &["10.2.0.0/16"]));
        let unknown = edited.edited(&edit).unwrap_err().to_string();
        assert!(unknown.contains("10.0.0.0/8"), "{unknown}");
    }

    #[test]
    fn a_text_has_a_prefix_a_line_and_comments() {
        let text = "# office\n10.0.0.0/8   # all\n\n  2001:db8::1\n";
        assert_eq!(
            parse_prefixes(text).unwrap(),
            prefixes(&["10.0.0.0/8", "2001:db8::1"])
        );
        let (line, error) = parse_prefixes("10.0.0.0/8\nnone\n").unwrap_err();
        assert_eq!(line, 2);
        assert!(error.contains("none"));
    }

    #[test]
    fn a_list_comes_back_as_it_was_written() {
        let list = list(&["10.0.0.0/8", "0.0.0.0/0"], &["2001:db8::/32"]);
        let json = serde_json::to_string(&list).unwrap();
        assert_eq!(
            json,
            r#"{"name":"some","allow":["0.0.0.0/0","10.0.0.0/8"],"deny":["2001:db8::/32"]}"#
        );
        assert_eq!(serde_json::from_str::<AccessList>(&json).unwrap(), list);
    }
}
