//! A machine of a test's own, for tests that use the names of everybody: process ids, mounts and control groups that
//! nobody else sees. `/run`, the BPF file system and the root of the control groups are empty to begin with.

use std::{
    env, fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Stdio},
};

use crate::{ControlGroup, process};

/// Set in the process that a test runs in again.
const INSIDE: &str = "TPROXY_TEST_PRIVATE_HOST";

/// Enters the control group that `$0` is the list of, leaves everything else, and becomes the rest of the arguments.
const LEAVE: &str = "echo $$ > \"$0\" && exec setpriv --pdeathsig KILL \
                     unshare --mount --pid --cgroup --fork --kill-child --mount-proc \"$@\"";

/// Stays as process 1, whose children the orphans become.
const SETTLE: &str = "mount -t tmpfs tmpfs /run && mkdir /run/netns &&
                      mount -t bpf -o mode=0700 bpf /sys/fs/bpf &&
                      mount -t cgroup2 cgroup2 /sys/fs/cgroup || exit 1
                      \"$@\"
                      exit $?";

/// Runs the body of the test `name` on such a machine: in a process that runs this test, and no other, once more.
#[track_caller]
pub fn run(name: &str, body: impl FnOnce()) {
    if is_inside() {
        return body();
    }
    let group = ControlGroup::create();
    let output = Command::new("sh")
        .args(["-c", LEAVE])
        .arg(group.directory().join("cgroup.procs"))
        .args(["sh", "-c", SETTLE, "sh"])
        .arg(env::current_exe().expect("the path of this program"))
        .args(["--exact", name, "--include-ignored", "--nocapture"])
        .env(INSIDE, "1")
        .stdin(Stdio::null())
        .output()
        .expect("start a shell");
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && printed.contains("test result: ok. 1 passed"),
        "{name}, on a machine of its own: {}\n{printed}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Gives the file at `path` another content, on this machine only.
#[track_caller]
pub fn replace(path: &str, content: &str) {
    assert!(is_inside(), "the host keeps its {path}");
    let copy = Path::new("/run").join(path.replace('/', "-"));
    fs::write(&copy, content).expect("write the file");
    let readable = fs::Permissions::from_mode(0o644);
    fs::set_permissions(&copy, readable).expect("open the file to all");
    process::expect_success(Command::new("mount").arg("--bind").arg(&copy).arg(path));
}

fn is_inside() -> bool {
    env::var_os(INSIDE).is_some()
}
