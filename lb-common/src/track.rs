//! Which backend takes a flow whose slot's owner is not the whole answer: the slot moves or settles,
//! the owner takes no new flows, or the service records every flow (ARCHITECTURE.md, "Flow consistency").
//!
//! Plain data goes in and comes out, so that the kernel's program can call this as a function of its
//! own, verified by itself and out of the way of packets that need none of it.
//!
//! The one place that reads and writes flow tables. What must hold: a recorded flow stays with its
//! backend while that holds flows; an unrecorded one belongs to `origin` while its slot moves and to
//! `owner` otherwise; a choice that cannot be recorded is not made; hearsay changes nothing.

use crate::{
    flow::Signal,
    hash::FlowHash,
    schedule::{self, NOBODY},
    steer::{self, Candidate, Service, Spot},
    tables::{
        FlowEvent, FlowKey, Phase, Record, Recorded, SECOND, Slot, Table, Tables, Tick,
        record_flag, scheduler, service_flag,
    },
};

/// How long an opening that nothing has followed is kept: longer than the longest pause between
/// SYN-ACKs of servers in common use (Linux: 32 s).
pub const OPENING_LIFETIME: Tick = 60 * SECOND;
/// How long a flow is kept after the client's FIN: longer than its peer usually has left to say.
pub const FINISHED_LIFETIME: Tick = 120 * SECOND;
/// How long a flow is kept after the client's RST, which may have been forged.
pub const RESET_LIFETIME: Tick = 10 * SECOND;
/// Where the stamp of a record that was found expired is put: beyond every moving time, so that a
/// longer one does not bring back what the flow's client and backend have long forgotten.
pub const LONG_AGO: Tick = 1 << 30;

/// How long a record lives after its flow's last packet, given its service's moving time.
#[inline(always)]
pub fn lifetime(flags: u16, moving_time: Tick) -> Tick {
    let most = if flags & record_flag::RESET != 0 {
        RESET_LIFETIME
    } else if flags & record_flag::FINISHED != 0 {
        FINISHED_LIFETIME
    } else if flags & record_flag::OPENING != 0 {
        OPENING_LIFETIME
    } else {
        moving_time
    };
    if most < moving_time {
        most
    } else {
        moving_time
    }
}

/// Whether a record counts at a time.
#[inline(always)]
pub fn live(record: &Record, now: Tick, moving_time: Tick) -> bool {
    // Signed: another CPU may be a tick ahead.
    (now.wrapping_sub(record.stamp) as i32) < lifetime(record.flags, moving_time) as i32
}

/// What a table says of a flow. All of it is set even where that is nothing: the verifier rejects a
/// program that moves what was never written.
#[derive(Clone, Copy)]
struct Found {
    /// Whether there is a live record.
    is_live: bool,
    /// What it says.
    record: Record,
    /// Where it is; where there is none, where one is to be made.
    table: Table,
    /// It stands for a connection that has ended, and this packet opens another.
    over: bool,
    /// This is the first packet that says of its client that it is there: none that opens or resets.
    confirms: bool,
}

impl Found {
    const NOTHING: Self = Self {
        is_live: false,
        record: Record {
            member: 0,
            flags: 0,
            generation: 0,
            stamp: 0,
            since: 0,
        },
        table: Table::HalfOpen,
        over: false,
        confirms: false,
    };
}

/// A slot's answer for flows that are not recorded. Nothing that can be had again: it is kept while the choice is
/// made, which takes what is left of the kernel's stack.
struct Place<'t> {
    /// Local id of the backend that every answer would lead to, as long as nobody dies; [`NOBODY`] where there is
    /// none.
    certain: u32,
    /// Who takes them: whom the slot names, or the owner where that is dead; `None` where both are.
    keeper: Option<Candidate<'t>>,
}

/// What is asked of a packet.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Question {
    /// What its flow is recorded under.
    pub key: FlowKey,
    /// Its flow's hash, by the service's own fields.
    pub hash: FlowHash,
    /// Its flow's hash by the fields of the service's previous ring.
    pub previous_hash: FlowHash,
    /// Its slot.
    pub slot: Slot,
    /// Which half of the service is in force.
    pub half: u32,
    /// What it says of its connection.
    pub signal: Signal,
    /// Whether no packet of its protocol says that it opens a connection.
    pub connectionless: bool,
    /// Whether what is recorded for the flow, and was not found when it was looked for, is to be given up:
    /// set by [`settle`].
    pub over: bool,
    /// The subset whose part of the ring its slot is in, by number.
    pub subset: u8,
}

impl Question {
    /// Where its flow is placed.
    #[inline(always)]
    pub const fn spot(&self) -> Spot {
        Spot {
            slot: self.slot,
            subset: self.subset as u32,
        }
    }
}

/// Instead of a backend's index: there is a record that was not found, or that has expired.
const OVERTAKEN: u32 = u32::MAX;

/// Asks, and once more where another CPU may have recorded the flow meanwhile: what that one chose
/// stands.
#[inline(always)]
pub fn settle(mut ask: impl FnMut(bool) -> u32) -> u32 {
    match ask(false) {
        OVERTAKEN => ask(true),
        index => index,
    }
}

/// Local id of the backend that a new flow gets, or [`NOBODY`]: for those that are not recorded here.
#[inline(always)]
pub fn choose<T: Tables>(tables: &T, question: &Question) -> u32 {
    let Some(service) = Service::at(tables, question.key.service.into(), question.half) else {
        return NOBODY;
    };
    let asked = Asked {
        tables,
        service,
        question,
        now: tables.now(),
    };
    asked.choose().map_or(NOBODY, |candidate| candidate.id)
}

/// Index of the backend that takes a packet; 0 where none does. To be called through [`settle`].
#[inline(always)]
pub fn answer<T: Tables>(tables: &T, question: &Question) -> u32 {
    let Some(service) = Service::at(tables, question.key.service.into(), question.half) else {
        return 0;
    };
    let asked = Asked {
        tables,
        service,
        question,
        now: tables.now(),
    };
    let candidate = if service.descriptor.moving_time == 0 {
        // Stateless: whoever is alive.
        asked.choose()
    } else {
        if !question.over {
            tables.count_flow(service.index, FlowEvent::Lookup);
        }
        if question.signal == Signal::Hearsay {
            asked.whose()
        } else {
            match asked.answer() {
                Ok(candidate) => candidate,
                Err(Overtaken) => return OVERTAKEN,
            }
        }
    };
    candidate.map_or(0, |candidate| candidate.member.backend)
}

/// There is a record where none was found: another CPU's, or one that has expired.
struct Overtaken;

/// A question, and what it is asked of.
struct Asked<'a, 't, T> {
    tables: &'t T,
    service: Service<'t>,
    question: &'a Question,
    now: Tick,
}

impl<'t, T: Tables> Asked<'_, 't, T> {
    #[inline(always)]
    fn answer(&self) -> Result<Option<Candidate<'t>>, Overtaken> {
        let found = self.find()?;
        if found.confirms && self.persists() {
            let id = found.record.member.into();
            self.tables.confirm(self.question, id);
        }
        if found.is_live
            && !found.over
            && let Some(candidate) = self.recorded(&found.record)
            && (candidate.takes() || !self.opens())
        {
            return Ok(Some(candidate));
        }
        let lost = found.is_live;
        let left = self.counted_at(&found.record);
        let place = self.place();
        let begins = lost || self.is_new();
        let candidate = match place.keeper {
            Some(keeper) if !begins => keeper,
            _ => match self.choose() {
                Some(chosen) => chosen,
                None => return Ok(None),
            },
        };
        let always = self.service.descriptor.flags & service_flag::ALWAYS != 0;
        // Nothing to remember where every answer would be the same.
        if candidate.id != place.certain || lost || always {
            // Over an old record in its own table, where it is looked for first.
            // Where no keeper is left, a connection that opens is better tried again than begun where
            // it could not stay once the ring follows.
            if !self.record(found.table, &candidate, lost)? {
                match place.keeper {
                    Some(keeper) => return Ok(Some(keeper)),
                    None if self.opens() => return Ok(None),
                    None => {}
                }
            }
            // In an old record's place there is room, unless the sweep has just taken that out.
            if left != NOBODY {
                self.tables.add_load(left, -1);
            }
        }
        if begins && self.persists() {
            self.tables.remember(self.question, candidate.id);
        }
        Ok(Some(candidate))
    }

    /// Who has the flow that somebody speaks of, who may be anybody: the tables are read, and left as they
    /// are.
    #[inline(always)]
    fn whose(&self) -> Option<Candidate<'t>> {
        let moving_time = self.service.descriptor.moving_time;
        let look = |table| {
            let read = |record: &mut Record| live(record, self.now, moving_time).then_some(*record);
            self.tables.visit(table, &self.question.key, read).flatten()
        };
        look(Table::Established)
            .or_else(|| look(Table::HalfOpen))
            // Another CPU may have promoted it between the two.
            .or_else(|| look(Table::Established))
            .and_then(|record| self.recorded(&record))
            .or_else(|| self.place().keeper)
    }

    /// The backend that a new flow gets.
    #[inline(always)]
    fn choose(&self) -> Option<Candidate<'t>> {
        let Question { hash, half, .. } = *self.question;
        let mut id = NOBODY;
        if self.persists() {
            id = self.tables.recall(self.question);
        }
        if id == NOBODY {
            let spot = self.question.spot();
            id = schedule::choose(self.tables, self.service.index, half, hash, spot);
        }
        steer::candidate(self.tables, self.service.descriptor, id)
    }

    /// Whether clients keep the backends that they got.
    #[inline(always)]
    fn persists(&self) -> bool {
        self.service.descriptor.persistence != 0
    }

    #[inline(always)]
    fn opens(&self) -> bool {
        self.question.signal == Signal::Opens
    }

    /// Whether an unrecorded packet begins a flow. Without connections to tell by, whatever is not
    /// recorded is new where choices are made by connection or by client, or backends have limits, unless it
    /// may be older than that.
    #[inline(always)]
    fn is_new(&self) -> bool {
        let moves = self.moves_whole() || self.question.slot.phase() == Phase::Moving;
        let descriptor = self.service.descriptor;
        let counted = descriptor.flags & service_flag::COUNTED != 0;
        let scheduled = (counted || descriptor.scheduler() != scheduler::RING) && !moves;
        let persists = self.persists() && !self.moves_whole();
        self.opens() || (self.question.connectionless && (scheduled || persists))
    }

    /// The flow's live record, noting this packet in it.
    #[inline(always)]
    fn find(&self) -> Result<Found, Overtaken> {
        let established = self.look(Table::Established);
        if established.is_live {
            return Ok(established);
        }
        let half_open = self.look(Table::HalfOpen);
        if self.opens() {
            Ok(half_open)
        } else if half_open.is_live {
            match self.question.signal {
                // What follows a forged SYN is a RST, of the host whose address it bore.
                Signal::Resets => Ok(half_open),
                _ => self.promote(half_open),
            }
        } else {
            // Another CPU may have promoted it between the two.
            Ok(self.look(Table::Established))
        }
    }

    #[inline(always)]
    fn look(&self, table: Table) -> Found {
        let (signal, now) = (self.question.signal, self.now);
        let moving_time = self.service.descriptor.moving_time;
        let counted = self.is_counted();
        let visited = self.tables.visit(table, &self.question.key, |record| {
            let before = record.flags;
            let is_live = live(record, now, moving_time);
            let over = closed(before);
            if is_live && !(over && signal == Signal::Opens) {
                record.stamp = now;
                record.flags = noted(before, signal);
                if counted && !closed(record.flags) {
                    record.flags |= record_flag::COUNTED;
                }
            } else {
                record.flags = before & !record_flag::COUNTED;
                if !is_live {
                    record.stamp = now.wrapping_sub(LONG_AGO);
                }
            }
            (*record, before, is_live)
        });
        let Some((record, before, is_live)) = visited else {
            return Found::NOTHING;
        };
        self.recount(&record, before, record.flags);
        if !is_live {
            return Found::NOTHING;
        }
        // Of a connection that was recorded over one that had ended: promoted, any other is.
        let opening = record_flag::OPENING;
        let opened = before & opening != 0 && record.flags & opening == 0;
        Found {
            is_live,
            record,
            table,
            over: closed(before) && signal == Signal::Opens,
            confirms: table == Table::Established && opened,
        }
    }

    /// Counts a flow in or out where its record's flags begin or cease to say that it is. Also where
    /// its backend holds no flows just now: that may be back.
    #[inline(always)]
    fn recount(&self, record: &Record, before: u16, after: u16) {
        let is_counted = |flags: u16| flags & record_flag::COUNTED != 0;
        let change = match (is_counted(before), is_counted(after)) {
            (false, true) => 1,
            (true, false) => -1,
            _ => return,
        };
        if let Some(candidate) = self.named(record) {
            self.tables.add_load(candidate.backend.counters, change);
        }
    }

    /// Index of the counters that a record's flow is counted in; [`NOBODY`] where it is in none.
    #[inline(always)]
    fn counted_at(&self, record: &Record) -> u32 {
        if record.flags & record_flag::COUNTED == 0 {
            return NOBODY;
        }
        self.named(record)
            .map_or(NOBODY, |candidate| candidate.backend.counters)
    }

    /// A packet after the first that is no RST: the flow is established, as far as the table has room.
    #[inline(always)]
    fn promote(&self, found: Found) -> Result<Found, Overtaken> {
        let key = &self.question.key;
        let tables = self.tables;
        match tables.record(Table::Established, key, &found.record, self.question.over) {
            Recorded::Done => {}
            // The element that was copied may be another flow's by now: whoever promotes removes it.
            Recorded::Taken => return Err(Overtaken),
            Recorded::Full => {
                // It stays where it is, for as long as if it were established.
                tables.count_flow(self.service.index, FlowEvent::PromotionOverflow);
                return Ok(found);
            }
        }
        tables.forget(Table::HalfOpen, key);
        Ok(Found {
            table: Table::Established,
            confirms: true,
            ..found
        })
    }

    /// The backend that a record names, while it holds flows.
    #[inline(always)]
    fn recorded(&self, record: &Record) -> Option<Candidate<'t>> {
        self.named(record).filter(Candidate::holds)
    }

    /// The backend that a record names, while it has its place.
    #[inline(always)]
    fn named(&self, record: &Record) -> Option<Candidate<'t>> {
        steer::named(self.tables, self.service.descriptor, record)
    }

    /// Whether flows in progress are counted.
    #[inline(always)]
    fn is_counted(&self) -> bool {
        self.service.descriptor.flags & service_flag::COUNTED != 0
    }

    /// Whether unrecorded flows may be older than the service's settings.
    #[inline(always)]
    fn moves_whole(&self) -> bool {
        self.service.descriptor.flags & service_flag::MOVING != 0
    }

    #[inline(always)]
    fn place(&self) -> Place<'t> {
        let slot = self.question.slot;
        let whole = self.moves_whole();
        // Whether no change but a death would give the slot's flows to another: the ring before a move of the whole
        // service stays as it is, the one beneath does not.
        let (mut named, mut lasts) = (slot.keeper(), !whole);
        // Whom the ring before gives its flows to, while that holds flows.
        if whole
            && let Some(previous) = self.previous()
            && let Some(keeper) = self.keeper(previous.keeper(), previous.owner())
        {
            (named, lasts) = (keeper.id, true);
        }
        let owner = slot.owner();
        Place {
            certain: if lasts && named == owner {
                owner
            } else {
                NOBODY
            },
            keeper: self.keeper(named, owner),
        }
    }

    /// Who takes flows that are not recorded: whom their slot names, or its owner where that is dead.
    #[inline(always)]
    fn keeper(&self, named: u32, owner: u32) -> Option<Candidate<'t>> {
        let holding = |id| {
            let candidate = steer::candidate(self.tables, self.service.descriptor, id);
            candidate.filter(Candidate::holds)
        };
        match holding(named) {
            Some(keeper) => Some(keeper),
            None => holding(owner),
        }
    }

    /// The flow's slot of the previous ring.
    #[inline(always)]
    fn previous(&self) -> Option<Slot> {
        let Question {
            key,
            previous_hash,
            half,
            ..
        } = self.question;
        let descriptor = self.service.descriptor;
        steer::previous_slot(self.tables, descriptor, *half, key.source, *previous_hash)
    }

    /// Records the choice; false where the table is full, which is counted.
    #[inline(always)]
    fn record(
        &self,
        table: Table,
        candidate: &Candidate<'_>,
        lost: bool,
    ) -> Result<bool, Overtaken> {
        let mut flags = if self.opens() {
            record_flag::OPENING
        } else {
            noted(0, self.question.signal)
        };
        let counted = self.is_counted() && !closed(flags);
        if counted {
            flags |= record_flag::COUNTED;
        }
        let record = Record {
            member: candidate.id as u16,
            flags,
            generation: candidate.member.generation,
            stamp: self.now,
            since: self.now,
        };
        let over = lost || self.question.over;
        let (done, event) = match self.tables.record(table, &self.question.key, &record, over) {
            Recorded::Done => (true, FlowEvent::Recorded),
            Recorded::Full => (false, FlowEvent::Overflow),
            Recorded::Taken => return Err(Overtaken),
        };
        self.tables.count_flow(self.service.index, event);
        if done && counted {
            self.tables.add_load(candidate.backend.counters, 1);
        }
        Ok(done)
    }
}

/// Whether a record's flow has been ended by its client.
#[inline(always)]
fn closed(flags: u16) -> bool {
    flags & (record_flag::FINISHED | record_flag::RESET) != 0
}

/// A record's flags after a packet. A RST is taken back by whatever follows it, as it may have been
/// forged: it opens nothing and confirms nobody. A FIN is not, as acknowledgements follow it.
#[inline(always)]
fn noted(flags: u16, signal: Signal) -> u16 {
    const UNSURE: u16 = record_flag::OPENING | record_flag::RESET;
    match signal {
        Signal::Opens | Signal::Hearsay => flags,
        Signal::None => flags & !UNSURE,
        Signal::Finishes => flags & !(UNSURE | record_flag::COUNTED) | record_flag::FINISHED,
        Signal::Resets => flags & !record_flag::COUNTED | record_flag::RESET,
    }
}
