//! The part of a plan that says which source routes are in the maps, by which number, and whose flows they place where. Pure.
//!
//! A pool whose service has routes has a ring of parts, one for each subset of its backends, of the same size. A flow is placed
//! in the part of the subset that its source's route leads to. So routes are to a flow's place what hash fields are, and
//! change as these do: the whole service moves, with the routes before kept beside the ring before.
//!
//! Routes are a list of prefixes among those of access lists, and never changed: others are another list, which is written aside,
//! and one that nobody goes by any more goes after the grace period.

use std::{collections::BTreeSet, sync::Arc};

use lb_common::{steer, tables::Address};

use super::{Draft, NoRoom, layout::Placed};
use crate::{
    dataplane::Operation,
    model::{Access, Prefix, Rules, Service, SourceRoutes},
};

/// The routes that flows of a pool are placed by; none where there is one part of the ring for all.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Routes(Option<Arc<Table>>);

#[derive(Debug)]
struct Table {
    number: u32,
    rules: Rules,
    /// Lengths of its prefixes, the longest first.
    lengths: Vec<u8>,
    parts: u32,
    /// What it was made of; unknown after a restart.
    of: Option<SourceRoutes>,
}

/// What it was made of is no difference, nor what follows from its rules.
impl PartialEq for Table {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number && self.rules == other.rules
    }
}

impl Eq for Table {}

impl Routes {
    /// The list of a number; none for 0.
    pub(super) fn new(number: u32, rules: Rules, of: Option<SourceRoutes>) -> Self {
        if number == 0 {
            return Self::default();
        }
        let lengths: BTreeSet<u8> = rules.iter().map(|(prefix, _)| prefix.bits()).collect();
        let last = rules.iter().map(|&(_, says)| subset_of(says)).max();
        Self(Some(Arc::new(Table {
            number,
            lengths: lengths.into_iter().rev().collect(),
            parts: last.unwrap_or(0) + 1,
            rules,
            of,
        })))
    }

    /// The list's number; 0 for none.
    pub fn number(&self) -> u32 {
        self.0.as_ref().map_or(0, |table| table.number)
    }

    /// Parts of the ring.
    pub fn parts(&self) -> u32 {
        self.0.as_ref().map_or(1, |table| table.parts)
    }

    /// Whether flows are placed in the same way.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        let rules = |routes: &Self| routes.0.as_ref().map(|table| Arc::clone(&table.rules));
        rules(self) == rules(other)
    }

    /// The subset that flows from a source are for, as [`steer::subset`] says.
    pub fn subset(&self, source: Address) -> u32 {
        let Some(table) = &self.0 else {
            return 0;
        };
        let says = |&bits: &u8| {
            let prefix = Prefix::of(source, bits);
            let at = table.rules.binary_search_by_key(&prefix, |rule| rule.0);
            at.ok().and_then(|at| table.rules.get(at))
        };
        let found = table.lengths.iter().find_map(says);
        found.map_or(0, |&(_, says)| subset_of(says))
    }

    /// Where the part of the ring begins that flows from a source are placed in, of parts of `size` slots.
    pub(super) fn part(&self, source: Address, size: u32) -> u32 {
        steer::part(self.subset(source), size)
    }

    fn was_made_of(&self, routes: &SourceRoutes) -> bool {
        let made_of = self.0.as_ref().and_then(|table| table.of.as_ref());
        made_of == Some(routes)
    }
}

fn subset_of(says: Access) -> u32 {
    match says {
        Access::Subset(number) => number.into(),
        Access::Allow | Access::Deny => 0,
    }
}

impl Draft {
    /// The routes of a pool's services, of which one speaks for all. Written aside, where there are no such in the maps.
    pub(super) fn routes(&mut self, service: &Service, placed: &Placed) -> Result<Routes, NoRoom> {
        let wanted = &service.source_routes;
        if wanted.is_empty() {
            return Ok(Routes::default());
        }
        if placed.routes.was_made_of(wanted) {
            return Ok(placed.routes.clone());
        }
        let rules = Rules::new(service.route_rules());
        let same = |number: u32| Routes::new(number, Arc::clone(&rules), Some(wanted.clone()));
        // Those in force, where others are the same: another number would be another list.
        if placed.routes.is_same(&same(u32::MAX)) {
            return Ok(same(placed.routes.number()));
        }
        let mut known = self.layout.route_lists.iter();
        if let Some((&number, _)) = known.find(|(_, had)| **had == rules) {
            return Ok(same(number));
        }
        self.take_prefixes(rules.len())?;
        let number = self.new_list();
        let written = Operation::Access(number, Arc::clone(&rules));
        self.before.push(written);
        self.layout.route_lists.insert(number, Arc::clone(&rules));
        Ok(same(number))
    }

    /// Has routes go by which no pool places flows any more.
    pub(super) fn forget_routes(&mut self) {
        let pools = self.layout.pools.values();
        let numbers = pools.flat_map(|placed| [&placed.routes, &placed.previous_routes]);
        let used: BTreeSet<u32> = numbers.map(Routes::number).collect();
        let after = &mut self.after;
        self.layout.route_lists.retain(|&number, rules| {
            let is_used = used.contains(&number);
            if !is_used {
                after.push(Operation::ForgetAccess(number, Arc::clone(rules)));
            }
            is_used
        });
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::model::Mode;

    fn routes(given: &[(&str, &str)]) -> Routes {
        let mut service = Service::new("10.0.0.1:80/tcp".parse().unwrap(), Mode::Ipip);
        let route = |&(prefix, name): &(&str, &str)| (prefix.parse().unwrap(), name.to_owned());
        service.source_routes = given.iter().map(route).collect();
        Routes::new(7, Rules::new(service.route_rules()), None)
    }

    #[test]
    fn the_longest_prefix_says_which_part_of_the_ring_a_source_has() {
        let routes = routes(&[
            ("10.0.0.0/8", "b"),
            ("10.1.0.0/16", "a"),
            ("10.1.1.1", "default"),
            ("2001:db8::/32", "b"),
            ("::/0", "c"),
        ]);
        assert_eq!((routes.number(), routes.parts()), (7, 4));
        for (source, subset) in [
            ("10.2.0.1", 2),
            ("10.1.2.3", 1),
            ("10.1.1.1", 0),
            ("192.0.2.1", 0),
            ("2001:db8::5", 2),
            ("2001:db9::5", 3),
        ] {
            let source: IpAddr = source.parse().unwrap();
            assert_eq!(routes.subset(source.into()), subset, "{source}");
            assert_eq!(routes.part(source.into(), 251), subset * 251, "{source}");
        }
    }

    #[test]
    fn without_routes_there_is_one_part_for_all() {
        let none = Routes::default();
        assert_eq!((none.number(), none.parts()), (0, 1));
        assert_eq!(none.subset(IpAddr::from([10, 0, 0, 1]).into()), 0);
        assert!(!none.is_same(&routes(&[("10.0.0.0/8", "default")])));
    }
}
