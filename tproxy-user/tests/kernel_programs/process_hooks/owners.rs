//! Rules that hold for the processes of some users or control groups.

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    process::Command,
    thread,
};

use nix::libc;
use tproxy_user::rule::Cgroup;

use super::setting::{RELAYED, at, in_setting, local, of_worker};
use crate::neighbour::{accept, families};
/// Rules hold for the users that they name: a process is known by its real user.
#[test]
fn rules_hold_for_users() {
    in_setting(|setting| {
        let workers = setting.sandbox.start_workers(1);
        let (relay, _) = of_worker(&workers);
        setting
            .sandbox
            .install(&[local(|spec| spec.uid = vec!["1000-1999".into()])]);
        for family in families() {
            for (user, listener) in [
                (999, setting.tcp(RELAYED)),
                (1000, &relay),
                (1999, &relay),
                (2000, setting.tcp(RELAYED)),
            ] {
                let target = at(family, RELAYED);
                let connect = || {
                    become_user(user);
                    TcpStream::connect(target)
                };
                let client = thread::scope(|scope| scope.spawn(connect).join());
                let _client = client.expect("a thread").expect("a connection");
                assert_eq!(accept(listener).1, target, "{user}");
            }
        }
    });
}

/// Of the calling thread alone: the call of the C library would change all threads.
fn become_user(user: libc::uid_t) {
    // SAFETY: the call takes three numbers.
    let result = unsafe { libc::syscall(libc::SYS_setresuid, user, user, user) };
    assert_eq!(result, 0, "setresuid");
}

/// Rules hold for the groups that they name and for those below; a process is in its own and all above.
#[test]
fn rules_hold_for_control_groups_and_those_below() {
    in_setting(|setting| {
        let workers = setting.sandbox.start_workers(1);
        let (relay, _) = of_worker(&workers);
        let outer = Group::new(&format!("tproxy-test-{}", std::process::id()));
        let inner = Group::below(&outer, "service");
        let deepest = Group::below(&inner, "worker");
        let beside = Group::below(&outer, "servic");
        for family in families() {
            for (named, members, others) in [
                (&outer, vec![&outer, &inner, &deepest, &beside], vec![]),
                (&inner, vec![&inner, &deepest], vec![&outer, &beside]),
                (&deepest, vec![&deepest], vec![&inner, &outer]),
            ] {
                setting.sandbox.install(&[local(|spec| {
                    spec.cgroup = vec![named.0.clone()];
                })]);
                let members = members.into_iter().map(|group| (group, &relay));
                let others = others
                    .into_iter()
                    .map(|group| (group, setting.tcp(RELAYED)));
                for (group, listener) in members.chain(others) {
                    let target = at(family, RELAYED);
                    group.connect(target);
                    assert_eq!(accept(listener).1, target, "{} in {}", group.0, named.0);
                }
                // This process is in none of them.
                let _client = TcpStream::connect(at(family, RELAYED)).expect("a connection");
                assert_eq!(accept(setting.tcp(RELAYED)).1, at(family, RELAYED));
            }
        }
    });
}

/// A control group, by its path.
struct Group(String);

impl Group {
    fn new(path: &str) -> Self {
        let root = Cgroup::root().expect("control groups");
        fs::create_dir(root.join(path)).expect("a control group");
        Self(path.to_owned())
    }

    fn below(above: &Self, name: &str) -> Self {
        Self::new(&format!("{}/{name}", above.0))
    }

    fn directory(&self) -> PathBuf {
        Cgroup::root().expect("control groups").join(&self.0)
    }

    /// Has a process of the group connect to an address.
    fn connect(&self, target: SocketAddr) {
        let script = format!(
            "echo $$ >{}/cgroup.procs; exec 3<>/dev/tcp/{}/{}",
            self.directory().display(),
            target.ip(),
            target.port()
        );
        let connected = Command::new("bash").args(["-c", &script]).status();
        assert!(connected.expect("bash runs").success(), "{script}");
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Those below go first, and processes have ended by now.
        let _ = fs::remove_dir(self.directory());
    }
}
