//! Subsets of a service's backends, and source routes: which prefixes' clients go to which of them. Checked; no I/O.
//!
//! Clients of no route are for the subset `default`, and so are backends that name none. A subset that no backend is of is as
//! the default one, and that, where no backend is of it, as all.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map},
    sync::Arc,
};

use lb_common::tables::access;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Access, Backend, ModelError, Prefix, Rule, Service, check::invalid, group, name_of};

/// The subset of whoever names none.
pub const DEFAULT_SUBSET: &str = "default";
/// Subsets of a service at most, the default one included.
pub const MAX_SUBSETS: usize = access::SUBSETS as usize;
/// Prefixes of one service's routes at most.
pub const MAX_ROUTES: usize = 65_536;

/// The subset that each prefix leads to, of which the longest decides. Shared, since there may be many, and they are compared
/// often.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SourceRoutes(Arc<BTreeMap<Prefix, String>>);

impl SourceRoutes {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Prefixes, each with the subset that it leads to.
    pub fn iter(&self) -> btree_map::Iter<'_, Prefix, String> {
        self.0.iter()
    }
}

impl Serialize for SourceRoutes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.as_ref().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for SourceRoutes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        BTreeMap::deserialize(deserializer).map(|routes| Self(Arc::new(routes)))
    }
}

impl<'a> IntoIterator for &'a SourceRoutes {
    type Item = (&'a Prefix, &'a String);
    type IntoIter = btree_map::Iter<'a, Prefix, String>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl FromIterator<(Prefix, String)> for SourceRoutes {
    fn from_iter<I: IntoIterator<Item = (Prefix, String)>>(routes: I) -> Self {
        Self(Arc::new(routes.into_iter().collect()))
    }
}

/// Reads a subset's name.
///
/// # Errors
/// What a name looks like.
pub fn parse_subset(text: &str) -> Result<String, String> {
    group::parse_name_of("a subset", text)
}

/// Reads a route, written `PREFIX=SUBSET`.
///
/// # Errors
/// What is wrong with either.
pub fn parse_source_route(text: &str) -> Result<(Prefix, String), String> {
    let (prefix, subset) = text.split_once('=').ok_or_else(|| {
        format!("`{text}` is not a route: write PREFIX=SUBSET, such as 10.1.0.0/16=canary")
    })?;
    let prefix = prefix
        .parse()
        .map_err(|error: ModelError| error.to_string());
    Ok((prefix?, parse_subset(subset)?))
}

/// The subsets of a service, and who is in which.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subsets<'a> {
    /// Their names by number, the default one first.
    names: Vec<&'a str>,
    /// A bit for each that some backend is of.
    named: u16,
}

impl<'a> Subsets<'a> {
    fn of_service(service: &'a Service) -> Self {
        let routes = service.source_routes.iter();
        let mut others: BTreeSet<&str> = routes.map(|(_, subset)| subset.as_str()).collect();
        others.remove(DEFAULT_SUBSET);
        let mut subsets = Self {
            names: [DEFAULT_SUBSET].into_iter().chain(others).collect(),
            named: 0,
        };
        let backends = service.backends.iter();
        subsets.named = backends.fold(0, |named, backend| named | subsets.own(backend));
        subsets
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.names.len()
    }

    /// Their names, by number.
    pub fn names(&self) -> &[&'a str] {
        &self.names
    }

    /// The number of one; that of the default one for names of none.
    pub fn number(&self, name: &str) -> u8 {
        let others = self.names.get(1..).unwrap_or_default();
        others
            .binary_search(&name)
            .map_or(0, |place| place as u8 + 1)
    }

    /// Whether some backend is of the subset of a number.
    pub fn has_backends(&self, number: usize) -> bool {
        self.named >> number & 1 != 0
    }

    /// Those that a backend is of by itself, a bit for each.
    fn own(&self, backend: &Backend) -> u16 {
        if backend.subsets.is_empty() {
            return 1;
        }
        let is_of = |name: &str| backend.subsets.iter().any(|own| own == name);
        let names = self.names.iter().zip(0..);
        names.fold(0, |bits, (name, number)| {
            bits | u16::from(is_of(name)) << number
        })
    }

    /// A bit for each that there is.
    fn all(&self) -> u16 {
        u16::MAX >> (16 - self.names.len().min(16))
    }

    /// Those whose clients' new flows a backend is for, a bit for each.
    pub fn served_by(&self, backend: &Backend) -> u16 {
        let own = self.own(backend);
        let default = !self.has_backends(0) || own & 1 != 0;
        (own | if default { !self.named } else { 0 }) & self.all()
    }

    /// The others, a bit for each.
    pub fn apart_from(&self, backend: &Backend) -> u16 {
        !self.served_by(backend) & self.all()
    }

    /// Whether a backend is for clients of the subset of a number.
    pub fn serves(&self, backend: &Backend, number: usize) -> bool {
        self.served_by(backend) >> number & 1 != 0
    }
}

impl Service {
    /// Its subsets, of which there is always the default one.
    pub fn subsets(&self) -> Subsets<'_> {
        Subsets::of_service(self)
    }

    /// Whether not every backend is for every client.
    pub fn is_split(&self) -> bool {
        !self.source_routes.is_empty() || self.backends.iter().any(|b| !b.subsets.is_empty())
    }

    /// What its routes say of each source, in the order of prefixes, each of which is there once; those for all other
    /// sources of either family included. Nothing where there are no routes.
    pub fn route_rules(&self) -> Vec<Rule> {
        if self.source_routes.is_empty() {
            return Vec::new();
        }
        let subsets = self.subsets();
        // Else the whole of IPv6 would hold IPv4, which is mapped there.
        let others = [Prefix::V4, Prefix::V6].map(|all| (all, Access::Subset(0)));
        let mut rules: BTreeMap<Prefix, Access> = others.into_iter().collect();
        let routes = self.source_routes.iter();
        rules.extend(routes.map(|(&prefix, name)| (prefix, Access::Subset(subsets.number(name)))));
        rules.into_iter().collect()
    }
}

/// Whether routes and subsets fit each other, and what else the service has.
pub(super) fn check_subsets(service: &Service) -> Result<(), ModelError> {
    let (id, field) = (service.id, "source_route");
    let routes = &service.source_routes;
    if let Some(problem) = routes.iter().find_map(|(_, s)| parse_subset(s).err()) {
        return invalid(id, field, problem);
    }
    if routes.len() > MAX_ROUTES {
        let count = routes.len();
        let problem = format!("{count} prefixes are too many: at most {MAX_ROUTES}");
        return invalid(id, field, problem);
    }
    let mut names: BTreeSet<&str> = routes.iter().map(|(_, name)| name.as_str()).collect();
    names.insert(DEFAULT_SUBSET);
    if names.len() > MAX_SUBSETS {
        let (count, most) = (names.len() - 1, MAX_SUBSETS - 1);
        let problem =
            format!("{count} subsets are too many: at most {most} beside `{DEFAULT_SUBSET}`");
        return invalid(id, field, problem);
    }
    if !service.is_split() {
        return Ok(());
    }
    let field = if routes.is_empty() { "subsets" } else { field };
    if service.second_hop {
        let problem = "with a second hop, backends are told who else may have a flow of all of them: leave out one of the two";
        return invalid(id, field, problem);
    }
    if service.scheduler.takes_from_sequence() {
        let problem = format!(
            "scheduler \"{}\" goes through all backends, whatever their subset: use maglev, source-hash, three-tuple-hash, least-connections or weighted-least-connections",
            name_of(service.scheduler)
        );
        return invalid(id, field, problem);
    }
    Ok(())
}

/// Whether the subsets that a backend names can be such.
pub(super) fn check_names(service: &Service, backend: &Backend) -> Result<(), ModelError> {
    let (id, field) = (service.id, "subsets");
    if let Some(problem) = backend.subsets.iter().find_map(|s| parse_subset(s).err()) {
        return invalid(id, field, problem);
    }
    let mut seen = BTreeSet::new();
    if let Some(twice) = backend.subsets.iter().find(|name| !seen.insert(*name)) {
        return invalid(id, field, format!("{twice} stands twice: leave one out"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Mode;

    /// A service with these routes, and backends of these subsets.
    fn service(routes: &[(&str, &str)], subsets: &[&[&str]]) -> Service {
        let mut service = Service::new("10.0.0.1:80/tcp".parse().unwrap(), Mode::Ipip);
        let route = |&(prefix, name): &(&str, &str)| (prefix.parse().unwrap(), name.to_owned());
        service.source_routes = routes.iter().map(route).collect();
        let backend = |(number, names): (usize, &&[&str])| {
            let mut backend = Backend::at(format!("10.1.0.{}:80", number + 1).parse().unwrap());
            backend.subsets = names.iter().map(|&name| name.to_owned()).collect();
            backend
        };
        service.backends = subsets.iter().enumerate().map(backend).collect();
        service
    }

    /// Which backends, by number, are for each subset, in the order of numbers.
    fn members(service: &Service) -> Vec<(&str, Vec<usize>)> {
        let subsets = service.subsets();
        let of = |number: usize| {
            let backends = service.backends.iter().enumerate();
            let served = backends.filter(|(_, backend)| subsets.serves(backend, number));
            served.map(|(at, _)| at).collect()
        };
        let names = service.subsets().names().to_vec();
        names
            .into_iter()
            .enumerate()
            .map(|(number, name)| (name, of(number)))
            .collect()
    }

    #[test]
    fn backends_are_of_the_subsets_that_they_name_and_else_of_the_default_one() {
        let routes = [("10.1.0.0/16", "canary"), ("10.2.0.0/16", "blue")];
        let service = service(
            &routes,
            &[&[], &["canary"], &["default", "blue"], &["canary", "blue"]],
        );
        assert_eq!(
            members(&service),
            [
                ("default", vec![0, 2]),
                ("blue", vec![2, 3]),
                ("canary", vec![1, 3])
            ]
        );
    }

    #[test]
    fn a_subset_without_backends_is_as_the_default_one_and_that_as_all() {
        let routes = [("10.1.0.0/16", "canary"), ("10.2.0.0/16", "blue")];
        assert_eq!(
            members(&service(&routes, &[&[], &["canary"]])),
            [("default", vec![0]), ("blue", vec![0]), ("canary", vec![1])]
        );
        assert_eq!(
            members(&service(&routes, &[&["blue"], &["canary"]])),
            [
                ("default", vec![0, 1]),
                ("blue", vec![0]),
                ("canary", vec![1])
            ]
        );
    }

    #[test]
    fn without_routes_a_backend_of_other_subsets_gets_nobody() {
        assert_eq!(
            members(&service(&[], &[&[], &["canary"]])),
            [("default", vec![0])]
        );
    }

    #[test]
    fn sixteen_subsets_are_told_apart() {
        let names: Vec<String> = (0..15).map(|n| format!("s{n:02}")).collect();
        let prefixes: Vec<String> = (0..15).map(|n| format!("10.{n}.0.0/16")).collect();
        let routes: Vec<(&str, &str)> = (prefixes.iter().zip(&names))
            .map(|(prefix, name)| (prefix.as_str(), name.as_str()))
            .collect();
        let of: Vec<&[&str]> = vec![&["s00"], &["s14"], &[]];
        let all = service(&routes, &of);
        assert!(check_subsets(&all).is_ok());
        let subsets = all.subsets();
        let served: Vec<u16> = all.backends.iter().map(|b| subsets.served_by(b)).collect();
        assert_eq!(served, [0b10, 1 << 15, 0x7ffd]);
        assert_eq!((subsets.number("s14"), subsets.number("none")), (15, 0));
        let mut more = routes.clone();
        more.push(("10.99.0.0/16", "t"));
        let error = check_subsets(&service(&more, &of)).unwrap_err().to_string();
        assert!(error.contains("16 subsets are too many"), "{error}");
    }

    #[test]
    fn rules_have_all_of_each_family_so_that_neither_is_in_the_others() {
        let service = service(&[("::/0", "canary"), ("10.1.0.0/16", "canary")], &[&[]]);
        let rules: Vec<(String, Access)> = (service.route_rules().into_iter())
            .map(|(prefix, says)| (prefix.to_string(), says))
            .collect();
        let rule = |text: &str, number| (text.to_owned(), Access::Subset(number));
        assert_eq!(
            rules,
            [
                rule("::/0", 1),
                rule("0.0.0.0/0", 0),
                rule("10.1.0.0/16", 1)
            ]
        );
    }

    #[test]
    fn a_route_is_read_as_it_is_written() {
        let (prefix, subset) = parse_source_route("10.1.0.0/16=canary").unwrap();
        assert_eq!(
            (prefix.to_string(), subset.as_str()),
            ("10.1.0.0/16".to_owned(), "canary")
        );
        for (text, hint) in [
            ("10.1.0.0/16", "PREFIX=SUBSET"),
            ("10.1.0.1/16=canary", "has bits set beyond /16"),
            ("10.1.0.0/16=a b", "is not a subset's name"),
        ] {
            let error = parse_source_route(text).unwrap_err();
            assert!(error.contains(hint), "{error}");
        }
    }

    #[test]
    fn what_goes_through_all_backends_is_refused_with_what_would_do() {
        use crate::model::Scheduler;
        let mut split = service(&[("10.1.0.0/16", "canary")], &[&[], &["canary"]]);
        for scheduler in [
            Scheduler::RoundRobin,
            Scheduler::WeightedRoundRobin,
            Scheduler::PowerOfTwoChoices,
        ] {
            split.scheduler = scheduler;
            let error = check_subsets(&split).unwrap_err().to_string();
            assert!(error.contains("use maglev"), "{error}");
        }
        split.scheduler = Scheduler::LeastConnections;
        assert!(check_subsets(&split).is_ok());
        split.second_hop = true;
        assert!(check_subsets(&split).is_err());
    }
}
