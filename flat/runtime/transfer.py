"""Moving executions from one store to another: out into a file (`transfer_file` says how it looks), and in again.

**Out.** Whole families travel: with an execution go all above and below it, their programs, blobs and logs, and
the signals that wait for one of them. One execution is in memory at a time. One that is being driven
meanwhile is written as it stood at one commit.

**In.** The file is read twice: first all of it is checked, and only then is anything written, so that a damaged
file changes nothing. An execution becomes visible in one write. Its commits are stored one after the other under
a lease and the status `importing`, with which nothing resumes or wakes it; the last one, in the same transaction,
gives it its own status and gives the lease back. Whatever an import that died has left behind is recognised by
that status, and replaced by the next import.

What stays behind: who drove an execution, requests to cancel it, and the ids of signals that were consumed.
"""

from flat.runtime.transfer_file import BadExport
from flat.runtime.transfer_in import Contents, Existing, Imported, TakenIds, check_file, import_runs
from flat.runtime.transfer_out import Exported, everything, export_runs, families

__all__ = [
    "BadExport",
    "Contents",
    "Existing",
    "Exported",
    "Imported",
    "TakenIds",
    "check_file",
    "everything",
    "export_runs",
    "families",
    "import_runs",
]
