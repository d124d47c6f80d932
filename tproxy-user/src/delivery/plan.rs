//! Choosing a mark and a table that nothing else on this host holds.

use rtnetlink::packet_route::rule::{RuleAction, RuleMessage};

use super::{
    Assignment, Error, Netlink,
    assignment::upstream_mark,
    describe::{RuleSelectors, describe_route, describe_rule},
    links::link_names,
    object::{Family, route_of_ours, rule_of_ours, table_of_rule},
};

/// Another instance in the same network namespace. It may have no policy rule or route yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Neighbour {
    /// Its name.
    pub instance: String,
    /// What it has chosen.
    pub assignment: Assignment,
}

/// What the operator asks for, and what is taken beside what the kernel tells.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wanted<'a> {
    /// The mark; chosen when left out.
    pub mark: Option<u32>,
    /// The table; chosen when left out.
    pub table: Option<u32>,
    /// What an earlier agent of this instance recorded, if that agent is known to be dead. Rules
    /// and routes that are exactly its own then do not count as taken, and its mark and table are
    /// the first to be tried. If the choice falls on others, call
    /// [`remove_leftovers`](super::remove_leftovers) with this.
    pub previous: Option<Assignment>,
    /// The other instances, whose marks and tables are taken.
    pub neighbours: &'a [Neighbour],
}

/// The first table that is tried.
const FIRST_TABLE: u32 = 7470;

/// `unspec`, `default`, `main` and `local` (`<linux/rtnetlink.h>`, `rt_class_t`).
const RESERVED_TABLES: [u32; 4] = [0, 253, 254, 255];

/// Whether a table is one of the kernel's own, which no instance can have.
#[must_use]
pub fn is_reserved_table(table: u32) -> bool {
    RESERVED_TABLES.contains(&table)
}

/// How many marks and how many tables are tried.
const TRIES: usize = 16;

/// The marks that are tried: `t` (0x74) and a byte with three bits set, 0x70 first.
///
/// All have the same number of bits set, so that no `MARK/MARK` selects packets with another of
/// them. Counting on from 0x74700000 would give marks that all match 0x74700000/0x74700000.
fn default_marks() -> impl Iterator<Item = u32> {
    let bytes = (0..=0x70_u32).rev().filter(|byte| byte.count_ones() == 3);
    bytes.map(|byte| 0x7400_0000 | byte << 16).take(TRIES)
}

fn default_tables() -> impl Iterator<Item = u32> {
    (FIRST_TABLE..).take(TRIES)
}

/// Chooses a mark and a table. Changes nothing.
///
/// # Errors
///
/// An explicit mark or table that is invalid or taken is refused with what holds it; so are the
/// defaults when all that are tried are taken. [`Error::Read`] when the kernel's rules and routes
/// cannot be read.
pub async fn choose(netlink: &Netlink, wanted: Wanted<'_>) -> Result<Assignment, Error> {
    let previous = wanted
        .previous
        .filter(|previous| previous.mark != 0 && !is_reserved_table(previous.table));
    let in_force = InForce::read(netlink, previous, wanted.neighbours).await?;
    let mark = in_force.choose_mark(wanted.mark)?;
    let table = in_force.choose_table(netlink, wanted.table).await?;
    Ok(Assignment { mark, table })
}

/// The rules in force, without the leftovers of our previous agent.
struct InForce<'a> {
    rules: Vec<RuleMessage>,
    previous: Option<Assignment>,
    neighbours: &'a [Neighbour],
}

impl<'a> InForce<'a> {
    async fn read(
        netlink: &Netlink,
        previous: Option<Assignment>,
        neighbours: &'a [Neighbour],
    ) -> Result<Self, Error> {
        let mut rules = Vec::new();
        for family in Family::BOTH {
            let leftover = |rule: &RuleMessage| {
                previous.is_some_and(|previous| rule_of_ours(rule, family, previous).is_some())
            };
            rules.extend(
                netlink
                    .rules(family)
                    .await?
                    .into_iter()
                    .filter(|rule| !leftover(rule)),
            );
        }
        Ok(Self {
            rules,
            previous,
            neighbours,
        })
    }

    fn choose_mark(&self, wanted: Option<u32>) -> Result<u32, Error> {
        if let Some(mark) = wanted {
            if mark == 0 {
                return Err(Error::InvalidMark);
            }
            return match self.holder_of_mark(mark) {
                Some(holder) => Err(Error::MarkTaken { mark, holder }),
                None => Ok(mark),
            };
        }
        let mut first_taken = None;
        for mark in self
            .previous
            .map(|previous| previous.mark)
            .into_iter()
            .chain(default_marks())
        {
            let Some(holder) = self.holder_of_mark(mark) else {
                return Ok(mark);
            };
            first_taken.get_or_insert((mark, holder));
        }
        let (first, holder) = first_taken.unwrap_or_default();
        Err(Error::NoFreeMark {
            tries: TRIES,
            first,
            holder,
        })
    }

    /// The rule, or the instance, that would select packets with our mark or those of upstream
    /// connections, or whose packets our rule would select.
    fn holder_of_mark(&self, ours: u32) -> Option<String> {
        let upstream = upstream_mark(ours);
        let clashes = |value: u32, mask: u32| {
            // A rule for packets without a mark (`fwmark 0/0xff`) does not use one.
            value & mask != 0
                && ((ours ^ value) & mask == 0
                    || (upstream ^ value) & mask == 0
                    || value & ours == ours)
        };
        let neighbour = self.neighbours.iter().find(|neighbour| {
            let theirs = neighbour.assignment.mark;
            clashes(theirs, theirs) || upstream_mark(theirs) & ours == ours
        });
        if let Some(Neighbour { instance, .. }) = neighbour {
            return Some(format!("instance {instance}"));
        }
        let holder = self.rules.iter().find(|rule| {
            let theirs = RuleSelectors::of(rule).fwmark;
            theirs.is_some_and(|theirs| clashes(theirs.value, theirs.mask))
        });
        holder.map(|rule| format!("the policy rule \"{}\"", describe_rule(rule)))
    }

    async fn choose_table(&self, netlink: &Netlink, wanted: Option<u32>) -> Result<u32, Error> {
        if let Some(table) = wanted {
            if is_reserved_table(table) {
                return Err(Error::InvalidTable(table));
            }
            return match self.holder_of_table(netlink, table).await? {
                Some(holder) => Err(Error::TableTaken { table, holder }),
                None => Ok(table),
            };
        }
        let mut first_taken = None;
        let previous = self.previous.map(|previous| previous.table);
        for table in previous.into_iter().chain(default_tables()) {
            let Some(holder) = self.holder_of_table(netlink, table).await? else {
                return Ok(table);
            };
            first_taken.get_or_insert((table, holder));
        }
        let (first, holder) = first_taken.unwrap_or_default();
        Err(Error::NoFreeTable {
            tries: TRIES,
            first,
            holder,
        })
    }

    /// The rule that looks the table up or has one of its stand-ins, or a route in it.
    async fn holder_of_table(
        &self,
        netlink: &Netlink,
        table: u32,
    ) -> Result<Option<String>, Error> {
        let stand_ins = |table| {
            let assignment = Assignment { mark: 0, table };
            Family::BOTH.map(|family| assignment.stand_in(family))
        };
        // The stand-ins of two tables are the same for IPv4 if their low 16 bits are.
        let neighbour = self.neighbours.iter().find(|neighbour| {
            let theirs = stand_ins(neighbour.assignment.table);
            stand_ins(table).iter().any(|ours| theirs.contains(ours))
        });
        if let Some(Neighbour { instance, .. }) = neighbour {
            return Ok(Some(format!("instance {instance} has it")));
        }
        let lookup = self
            .rules
            .iter()
            .find(|rule| rule.header.action == RuleAction::ToTable && table_of_rule(rule) == table);
        if let Some(rule) = lookup {
            return Ok(Some(format!(
                "the policy rule \"{}\" looks it up",
                describe_rule(rule)
            )));
        }
        let stand_in = self.rules.iter().find(|rule| {
            let names = |stand_in| RuleSelectors::of(rule).names(stand_in);
            stand_ins(table).into_iter().any(names)
        });
        if let Some(rule) = stand_in {
            return Ok(Some(format!(
                "the policy rule \"{}\" is for the source that goes with it",
                describe_rule(rule)
            )));
        }
        for family in Family::BOTH {
            let routes = netlink.routes_of_table(family, table).await?;
            let foreign = routes.iter().find(|route| {
                self.previous
                    .is_none_or(|ours| route_of_ours(route, family, ours).is_none())
            });
            if let Some(route) = foreign {
                let links = link_names(netlink).await?;
                return Ok(Some(format!(
                    "it holds the route \"{}\"",
                    describe_route(route, &links)
                )));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_marks_begin_with_the_documented_one_and_never_select_each_other() {
        let marks: Vec<u32> = default_marks().collect();
        assert_eq!(marks.len(), TRIES);
        assert_eq!(marks[0], 0x7470_0000);
        for (index, mark) in marks.iter().enumerate() {
            for other in &marks[index + 1..] {
                assert_ne!(mark & other, *mark, "{mark:#x} selects {other:#x}");
                assert_ne!(mark & other, *other, "{other:#x} selects {mark:#x}");
            }
        }
    }
}
