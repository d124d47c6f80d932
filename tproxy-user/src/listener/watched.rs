//! One address that is watched: who listens there, and who was refused.

use std::os::fd::AsFd as _;
use std::{
    collections::{BTreeSet, HashMap},
    net::SocketAddr,
    os::fd::{BorrowedFd, OwnedFd},
};

use tproxy_common::flow::Protocol;

use super::{
    Absence, Error, Event, Found, MEMBERS, Process,
    choice::{Candidate, Chosen, choose},
    found::not_transparent,
    holder::Search,
    listing::Listed,
    namespaces, reach,
};

/// How many polls a socket that could not be taken is left alone for at most.
const LONGEST_PAUSE: u32 = 255;

/// What is watched of an address.
pub(super) struct Watched {
    protocol: Protocol,
    address: SocketAddr,
    needs_transparent: bool,
    members: Vec<Member>,
    /// By cookie.
    refused: HashMap<u64, Refusal>,
    state: State,
}

#[derive(PartialEq, Eq)]
enum State {
    New,
    Present,
    Absent,
}

/// A socket that was handed out.
struct Member {
    cookie: u64,
    bound: SocketAddr,
    process: Process,
    ipv4: bool,
    ipv6: bool,
    /// Readable once the process has ended; `None` from then on.
    alive: Option<OwnedFd>,
}

/// A socket that was not.
struct Refusal {
    /// What was told.
    text: String,
    /// What the kernel said of it in its list.
    transparent: Option<bool>,
    /// Polls for which it is left alone from the time of the refusal on.
    pause: u32,
    /// How many of them are left.
    left: u32,
}

impl Watched {
    pub(super) fn new(protocol: Protocol, address: SocketAddr, needs_transparent: bool) -> Self {
        Self {
            protocol,
            address,
            needs_transparent,
            members: Vec::new(),
            refused: HashMap::new(),
            state: State::New,
        }
    }

    /// Whether one of its sockets is not in the list.
    pub(super) fn misses(&self, listed: &[Listed]) -> bool {
        let mut members = self.members.iter();
        members.any(|member| !listed.iter().any(|socket| socket.cookie == member.cookie))
    }

    /// Takes note of who is gone.
    pub(super) fn forget_gone(&mut self, listed: &[Listed]) -> Vec<Event> {
        let reached = reach::reached(listed, self.address);
        let reached: HashMap<u64, &Listed> = reached
            .into_iter()
            .map(|socket| (socket.cookie, socket))
            .collect();
        self.refused.retain(|cookie, refusal| {
            refusal.left = refusal.left.saturating_sub(1);
            reached.contains_key(cookie)
        });
        let gone = self
            .members
            .extract_if(.., |member| !reached.contains_key(&member.cookie));
        gone.map(Member::gone).collect()
    }

    /// The inodes of the sockets that might become members.
    pub(super) fn open_inodes(&self, listed: &[Listed]) -> BTreeSet<u32> {
        let open = self.open(listed);
        open.iter().map(|socket| socket.inode).collect()
    }

    /// Takes new members, as far as there is room.
    pub(super) fn admit(&mut self, listed: &[Listed], search: &Search) -> Vec<Event> {
        let open = self.open(listed);
        let candidates = open.iter().map(|socket| Candidate {
            socket,
            holder: search.pid(socket.inode),
        });
        let there: Vec<Chosen> = self.members.iter().map(Member::chosen).collect();
        let room = MEMBERS.saturating_sub(there.len());
        let mut events = Vec::new();
        for socket in choose(candidates, &there, room) {
            match self.take(socket, search) {
                Ok(Some((found, alive))) => {
                    self.refused.remove(&socket.cookie);
                    self.members.push(Member::new(&found, alive));
                    events.push(Event::Found(found));
                }
                Ok(None) => _ = self.refuse(socket, String::new()),
                Err(error) => {
                    if self.refuse(socket, error.to_string()) {
                        events.push(Event::Refused(error));
                    }
                }
            }
        }
        events.extend(self.absence(listed).map(Event::Nobody));
        events
    }

    /// Says once that nobody is there, until somebody has been.
    fn absence(&mut self, listed: &[Listed]) -> Option<Absence> {
        if !reach::reached(listed, self.address).is_empty() {
            self.state = State::Present;
            return None;
        }
        let before = std::mem::replace(&mut self.state, State::Absent);
        let mut absence = Absence::of(self.protocol, self.address, listed);
        match before {
            State::Absent => return None,
            State::Present => {}
            // The search is long. Somebody who has been here will come back here.
            State::New => absence.elsewhere = namespaces::search(self.protocol, self.address),
        }
        Some(absence)
    }

    /// The sockets that might become members, while there is room.
    fn open<'a>(&self, listed: &'a [Listed]) -> Vec<&'a Listed> {
        if self.members.len() >= MEMBERS {
            return Vec::new();
        }
        let mut reached = reach::reached(listed, self.address);
        reached.retain(|socket| {
            let member = self.members.iter().any(|it| it.cookie == socket.cookie);
            !member && !self.is_left_alone(socket)
        });
        reached
    }

    fn is_left_alone(&self, socket: &Listed) -> bool {
        self.refused.get(&socket.cookie).is_some_and(|refusal| {
            let same = refusal.transparent == socket.transparent;
            let not_transparent = self.needs_transparent && socket.transparent == Some(false);
            same && (refusal.left > 0 || (not_transparent && !refusal.text.is_empty()))
        })
    }

    fn take(&self, socket: &Listed, search: &Search) -> Result<Option<(Found, OwnedFd)>, Error> {
        // Where its list says so the socket need not be taken for it.
        if self.needs_transparent
            && socket.transparent == Some(false)
            && let Some(pid) = search.pid(socket.inode)
        {
            return Err(not_transparent(Process::of(pid), socket.bound));
        }
        let taken = search.take(self.protocol, socket)?;
        if self.needs_transparent
            && let Some((found, _)) = &taken
        {
            found.check_transparent()?;
        }
        Ok(taken)
    }

    /// Leaves the socket alone for a while, longer each time. True when the reason is new.
    fn refuse(&mut self, socket: &Listed, text: String) -> bool {
        let before = self.refused.get(&socket.cookie);
        let is_new = !text.is_empty() && before.is_none_or(|refusal| refusal.text != text);
        let pause = before.map_or(0, |refusal| refusal.pause * 2 + 1);
        let pause = pause.min(LONGEST_PAUSE);
        let refusal = Refusal {
            text,
            transparent: socket.transparent,
            pause,
            left: pause,
        };
        self.refused.insert(socket.cookie, refusal);
        is_new
    }

    /// Everyone is gone: it is no longer watched.
    pub(super) fn end(self) -> impl Iterator<Item = Event> {
        let cookies = self.members.into_iter().map(|member| member.cookie);
        cookies.map(|cookie| Event::Released { cookie })
    }

    /// Descriptors that are readable once a process that has a socket has ended.
    pub(super) fn processes(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let alive = self.members.iter().filter_map(|it| it.alive.as_ref());
        alive.map(OwnedFd::as_fd)
    }

    /// Forgets about processes that have ended, so that they do not end a wait again. Their sockets
    /// may live on in others.
    pub(super) fn forget_ended(&mut self, has_ended: impl Fn(BorrowedFd<'_>) -> bool) {
        for member in &mut self.members {
            member.alive.take_if(|alive| has_ended(alive.as_fd()));
        }
    }
}

impl Member {
    fn new(found: &Found, alive: OwnedFd) -> Self {
        Self {
            cookie: found.cookie,
            bound: found.bound,
            process: found.process.clone(),
            ipv4: found.ipv4,
            ipv6: found.ipv6,
            alive: Some(alive),
        }
    }

    const fn chosen(&self) -> Chosen {
        Chosen {
            holder: Some(self.process.pid),
            ipv4: self.ipv4,
            ipv6: self.ipv6,
        }
    }

    fn gone(self) -> Event {
        Event::Gone {
            cookie: self.cookie,
            bound: self.bound,
            process: self.process,
        }
    }
}
