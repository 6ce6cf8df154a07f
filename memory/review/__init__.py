"""What the person decides: verdicts, quarantine, rollback, contradictions."""
